# The gateway: docker build -t r2v:0.2.0 .   (settings in /etc/r2v/r2v.yaml, its journal in /data; see docs/operations.md)
# The last stage has no shell, no package manager and no compiler: Debian's Python, r2v and what it needs.

# The Python of this stage must be that of the last one: both are Debian 13's.
FROM debian:trixie-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# The versions are those of the Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY examples examples
COPY src src
# Tests of packages are a tenth of the image. What is imported is compiled here, because the root is read-only; so is the
# standard library, which the last stage has as source only. Compiled files carry a hash of their source.
RUN python3 -m venv /opt/r2v \
    && /opt/r2v/bin/pip install --no-cache-dir --no-compile -c constraints.txt '.[gateway,redis,postgres,otel]' \
    && /opt/r2v/bin/pip uninstall -y pip \
    && find /opt/r2v/lib/python3*/site-packages/numpy -type d -name tests -exec rm -r {} + \
    && PYTHONPYCACHEPREFIX=/opt/r2v/compiled python3 -m compileall -q -j 0 --invalidation-mode checked-hash \
        -x '/tasks/|/(test|idlelib|tkinter|lib2to3|pydoc_data)/' /usr/lib/python3.13 /opt/r2v/lib \
    && mkdir /data

FROM gcr.io/distroless/python3-debian13:nonroot
LABEL org.opencontainers.image.title="r2v" \
      org.opencontainers.image.description="Step-level routing gateway for LLM agents" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/r2v /opt/r2v
COPY --from=build --chown=65532:65532 /data /data
# NumPy's threads would take memory, and a step's arrays are too small for them.
ENV PATH=/opt/r2v/bin:/usr/bin PYTHONPYCACHEPREFIX=/opt/r2v/compiled PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 HOME=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/r2v/bin/python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8321/health', timeout=2)"]
ENTRYPOINT ["/opt/r2v/bin/r2v"]
CMD ["serve", "/etc/r2v/r2v.yaml"]
