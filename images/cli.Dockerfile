# The Ringfold command line. From the root of the checkout: docker build -f images/cli.Dockerfile -t ringfold-cli .
# Without an engine: images/build cli
FROM rust:1.95.0-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libclang-dev protobuf-compiler
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p ringfold-cli --bins \
 && images/rootfs target/release/ringfold /rootfs && mkdir -m 0700 /empty

FROM scratch
COPY --from=build /rootfs/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/ringfold"]
