# The Ringfold operator. From the root of the checkout: docker build -f images/operator.Dockerfile -t ringfold-operator .
# Without an engine: images/build operator
FROM rust:1.95.0-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends libclang-dev protobuf-compiler
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p ringfold-operator --bins \
 && images/rootfs target/release/ringfold-operator /rootfs && mkdir -m 0700 /empty

FROM scratch
COPY --from=build /rootfs/ /
EXPOSE 2603
USER 65532:65532
ENTRYPOINT ["/usr/bin/ringfold-operator"]
