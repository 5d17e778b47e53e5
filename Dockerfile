# BiTAD in a container (docs/scaling.md). For a CPU: docker build -t bitad .
# For NVIDIA GPUs: docker build -t bitad --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG PYTHON_VERSION=3.13
FROM python:${PYTHON_VERSION}-slim

# Where PyTorch comes from. Its builds for Linux on PyPI include CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/bitad
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" torch
COPY pyproject.toml README.md LICENSE ./
COPY bitad bitad
RUN pip install --no-cache-dir -c constraints.txt .

# Also for users without a home, as of `docker run --user`
ENV HOME=/tmp
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["bitad"]
CMD ["--help"]
