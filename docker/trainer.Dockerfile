# The trainer: verl, vLLM, Ray and the verbs. The teacher is an image of its own: docs/install.md.
#     docker build -f docker/trainer.Dockerfile -t verl-opd-trainer .
# The digest is the tag's list of images (x86_64, aarch64). devel: vLLM, FlashInfer and Triton compile on first use.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6

# Unpinned: Ubuntu's archive keeps the newest build of a package only, so that a pin breaks the image with the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/verl-opd
COPY requirements/trainer-cuda.txt requirements/
RUN python3.12 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements/trainer-cuda.txt

COPY pyproject.toml README.md LICENSE ./
COPY verl_ext verl_ext
COPY configs configs
COPY data data
COPY recipe recipe
RUN .venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .

# 1000 is Ubuntu's own user. What a run writes: `outputs`; downloads: HF_HOME; compiled kernels: .cache.
RUN useradd --create-home --uid 1001 opd \
    && install --directory --owner opd outputs /models /home/opd/.cache
ENV PATH=/opt/verl-opd/.venv/bin:$PATH \
    CUDA_HOME=/usr/local/cuda \
    TRITON_CACHE_DIR=/home/opd/.cache/triton \
    HF_HOME=/models
USER 1001
CMD ["python", "-m", "recipe.on_policy_distillation", "--help"]
