# syntax=docker/dockerfile:1

FROM rust:1.95.0-slim-bookworm AS build
# The slim image has the C compiler that mimalloc and ring need, and that is all they need.
WORKDIR /build
COPY . .
# The caches outlive the build but are in no image; so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin courtier \
    && cp target/release/courtier /usr/local/bin/courtier

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin courtier \
    && install --directory --owner=courtier --group=courtier /var/lib/courtier
COPY --from=build /usr/local/bin/courtier /usr/local/bin/courtier
COPY examples/topology.toml /etc/courtier/topology.toml
USER courtier
WORKDIR /var/lib/courtier
# The specification maps 8011 outside to 8000 inside. APP_HOST stays the program's own default, the loopback interface:
# binding to all of them without credentials is for whoever runs the container to say.
ENV APP_PORT=8000
# Without a database server, failed messages are kept here: mount a volume.
ENV DATA_DIR=/var/lib/courtier
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["courtier", "health"]
ENTRYPOINT ["courtier"]
CMD ["serve"]
