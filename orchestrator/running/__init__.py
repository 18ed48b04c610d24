"""Running a sweep on Ray: prepare data, measure, train, retry and report."""
