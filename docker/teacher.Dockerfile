# The teacher: SGLang, started and watched by recipe.serve_teacher. docs/install.md.
#     docker build -f docker/teacher.Dockerfile -t verl-opd-teacher .
#     docker run ... verl-opd-teacher teacher=fp8 teacher.model_path=MODEL
# The digest is the tag's list of images (x86_64, aarch64). devel: SGLang, FlashInfer and Triton compile on first use.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6

# Unpinned: Ubuntu's archive keeps the newest build of a package only, so that a pin breaks the image with the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/verl-opd
COPY requirements/teacher-cuda.txt requirements/
RUN python3.12 -m venv .venv-teacher \
    && .venv-teacher/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements/teacher-cuda.txt

COPY configs configs
COPY verl_ext verl_ext
COPY recipe recipe

# 1000 is Ubuntu's own user. teacher.log: `outputs`; downloads: HF_HOME; compiled kernels: .cache.
RUN useradd --create-home --uid 1001 opd \
    && install --directory --owner opd outputs /models /home/opd/.cache
ENV PATH=/opt/verl-opd/.venv-teacher/bin:$PATH \
    CUDA_HOME=/usr/local/cuda \
    TRITON_CACHE_DIR=/home/opd/.cache/triton \
    HF_HOME=/models \
    TEACHER_PORT=30000
USER 1001

# On loopback, where `--network host` lets the trainer in; teacher.host=0.0.0.0 opens it, with a key in TEACHER_API_KEY.
# SGLang answers /health without a key. Loading 30B takes minutes.
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", \
         "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['TEACHER_PORT'] + '/health')"]
ENTRYPOINT ["python", "-m", "recipe.serve_teacher", "log_path=outputs/teacher.log", \
            "teacher.device=cuda", "teacher.port=${oc.env:TEACHER_PORT}"]
CMD ["--help"]
