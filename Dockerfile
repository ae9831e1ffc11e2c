# One image for all processes: `consumer`, `relay`, `setup`; without a command `run` does setup and starts both.
FROM python:3.13-slim-bookworm AS pip
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM pip AS dependencies
COPY requirements.txt /
# Wheels only: the image has no compiler.
RUN pip install --require-hashes --only-binary :all: --prefix /installed -r /requirements.txt

FROM pip AS application
COPY requirements-build.txt /
RUN pip install --require-hashes --only-binary :all: -r /requirements-build.txt
WORKDIR /source
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /installed .

FROM python:3.13-slim-bookworm
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A layer for each: the dependencies rarely change between releases.
COPY --from=dependencies /installed /usr/local
COPY --from=application /installed /usr/local
# At last pip checks that all fits together, and goes: nothing can be installed into a running container.
RUN python -m pip check && python -m pip uninstall --quiet --root-user-action ignore --yes pip && \
    rm -r /usr/local/lib/python3.*/ensurepip
# A number, so that Kubernetes can check that it is not root.
USER 10001:10001
EXPOSE 9464 9465
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["orchestrator", "healthcheck"]
ENTRYPOINT ["orchestrator"]
CMD ["run"]

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vap-orchestrator" \
      org.opencontainers.image.description="Transactional-outbox orchestrator: exactly once from Kafka through Postgres to Kafka" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-bookworm"
