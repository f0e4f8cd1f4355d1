# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin beampipe && install -D target/release/beampipe /out/beampipe

FROM debian:bookworm-slim
# The certificates that archives over https are checked against.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/beampipe --create-home --shell /usr/sbin/nologin beampipe
COPY --from=build /out/beampipe /usr/local/bin/beampipe
USER 10001
WORKDIR /var/lib/beampipe
VOLUME /var/lib/beampipe
EXPOSE 8080 9090
# Whether the process answers, not whether its dependencies do: that is /ready, and no reason to be restarted.
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /api/v2/health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["beampipe"]
CMD ["serve"]
