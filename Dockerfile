# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin beampipe \
    && install -D target/release/beampipe /out/beampipe \
    && strip --strip-debug /out/beampipe

FROM debian:bookworm-slim
# The certificates that archives over https are checked against. The directories are made here so that a volume that is
# mounted on them belongs to the user from its first use.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --user-group --uid 10001 --home-dir /var/lib/beampipe --shell /usr/sbin/nologin beampipe \
    && install -d -o beampipe -g beampipe -m 0700 /var/lib/beampipe /var/lib/beampipe/artifacts /var/lib/beampipe/simulated
COPY --from=build /out/beampipe /usr/local/bin/beampipe
# Inside a container loopback is nobody else's; who may reach it from outside is said where its ports are published.
ENV BEAMPIPE_STATE_DIR=/var/lib/beampipe \
    BEAMPIPE_HTTP__LISTEN=0.0.0.0:8080 \
    BEAMPIPE_METRICS__LISTEN=0.0.0.0:9090
USER 10001
WORKDIR /var/lib/beampipe
VOLUME /var/lib/beampipe
EXPOSE 8080 9090
# Whether the process answers, not whether its dependencies do: that is /ready, and no reason to be restarted. Asked on
# the metrics listener, which every role has.
HEALTHCHECK --interval=15s --timeout=3s --start-period=30s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9090 && printf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["beampipe"]
CMD ["serve"]
