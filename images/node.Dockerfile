# A Ringfold node. From the root of the checkout: docker build -f images/node.Dockerfile -t ringfold-node .
# Without an engine: images/build node
FROM rust:1.95.0-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libclang-dev protobuf-compiler
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p ringfold-node --bins \
 && images/rootfs target/release/ringfold-node /rootfs && mkdir -m 0700 /empty

FROM scratch
COPY --from=build /rootfs/ /
# A named volume on it belongs to the program.
COPY --from=build --chown=65532:65532 /empty /data
EXPOSE 2600 2601 2602/udp 2603
USER 65532:65532
ENTRYPOINT ["/usr/bin/ringfold-node"]
