# The image of every role. What to run comes after the image's name:
#
#     docker build -t heartbeat:local .
#     docker run --rm heartbeat:local --help

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# Dependencies alone, from sources that are empty. This layer is built again only when the manifest
# or the lock file changes. A layer needs no BuildKit, travels with `docker build --cache-from` and
# is shared by all builders of a machine; a cache mount has none of that.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' | tee build.rs src/main.rs > src/lib.rs \
    && cargo build --release --locked --bin heartbeat \
    # Cargo compares times, and a checkout may be older than this layer: without this it would take
    # the empty program for ours.
    && cargo clean --release --locked --package heartbeat \
    && rm -r src build.rs

# Ours. The build script makes Cargo look at the migrations, which are embedded.
COPY build.rs ./
COPY migrations migrations
COPY src src
RUN cargo build --release --locked --bin heartbeat

# glibc, libgcc and certificates; no shell and no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="heartbeat" \
      org.opencontainers.image.description="A distributed heartbeat monitor" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=build /build/target/release/heartbeat /usr/local/bin/heartbeat
# The image's `nonroot`. As numbers, so that an orchestrator can tell that it is not root.
USER 65532:65532
# payments, monitor, relay
EXPOSE 5000 5001 5003
STOPSIGNAL SIGTERM
# Asks the monitor's port. For another role set HEALTHCHECK_URL, or name the address as
# compose.yaml does: a check that needs a shell, as that of `docker run --health-cmd`, cannot run.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/heartbeat", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/heartbeat"]
CMD ["--help"]
