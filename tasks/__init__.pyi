from .measures.measure import measure_array as measure_array
