# The image of a GPU node: locked CUDA packages, then isweep itself. Make the wheel first.
#   make wheel && docker build --tag isweep:0.1.0-cuda .
# The base has Python only; the CUDA libraries come as wheels, the driver from the host.
FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 isweep \
    && apt-get update -q && apt-get install -q -y --no-install-recommends procps wget \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/isweep
# The driver's libraries lie where the runtime puts them, and on Google's Kubernetes in this folder.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64
ENV PATH=/opt/isweep/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_task_oom_retries=2 RAY_enable_open_telemetry=0
COPY dist/constraints-cuda.txt /tmp/
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/constraints-cuda.txt
COPY dist/isweep-*.whl /tmp/
RUN pip install --no-cache-dir --no-deps /tmp/isweep-*.whl && isweep --help > /dev/null
# By number: Kubernetes cannot tell of a name whether it is root's.
USER 1000
WORKDIR /home/isweep
