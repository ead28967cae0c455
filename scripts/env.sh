# Sourced by the Makefile: where caches live, and what a build needs. Installs what is missing.
#
# RINGFOLD_CACHE    kept outside the checkout (default: $XDG_CACHE_HOME/ringfold or ~/.cache/ringfold)
# CARGO_TARGET_DIR  honoured; default $RINGFOLD_CACHE/target

say() { printf 'ringfold: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

RINGFOLD_CACHE=${RINGFOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ringfold}
mkdir -p "$RINGFOLD_CACHE" || die "cannot create the cache $RINGFOLD_CACHE; set RINGFOLD_CACHE to a folder that can be written"
export RINGFOLD_CACHE
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$RINGFOLD_CACHE/target}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null 2>&1; then sudo "$@"
  else return 1
  fi
}

# Installs Debian packages that are missing, all in one call.
need_packages() {
  missing=
  for p in "$@"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
  done
  [ -z "$missing" ] && return 0
  command -v apt-get >/dev/null 2>&1 || die "please install what Debian calls:$missing"
  say "installing packages:$missing"
  # shellcheck disable=SC2086
  as_root apt-get update -q >"$RINGFOLD_CACHE/apt.log" 2>&1 \
    && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >>"$RINGFOLD_CACHE/apt.log" 2>&1 \
    || die "could not install them (see $RINGFOLD_CACHE/apt.log). As root: apt-get update && apt-get install$missing"
}

need_toolchain() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  if ! command -v rustup >/dev/null 2>&1; then
    as_root apt-get install -y -q rustup >>"$RINGFOLD_CACHE/apt.log" 2>&1 \
      || die "please install rustup (https://rustup.rs), then run this again"
  fi
  channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  if ! rustup run "$channel" cargo clippy --version >/dev/null 2>&1 || ! rustup run "$channel" rustfmt --version >/dev/null 2>&1; then
    say "installing Rust $channel"
    rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy \
      || die "rustup could not install Rust $channel"
  fi
}

# RocksDB is compiled once on a machine and linked into every profile.
need_rocksdb() {
  [ -n "${ROCKSDB_LIB_DIR:-}" ] && return 0
  key=$( { grep -A1 '^name = "librocksdb-sys"' Cargo.lock; cat .cargo/config.toml; c++ --version | head -n1; uname -m; } | cksum | cut -d' ' -f1)
  lib=$RINGFOLD_CACHE/rocksdb/$key
  if [ ! -f "$lib/librocksdb.a" ]; then
    say "compiling RocksDB once for this machine (11 to 14 minutes on two cores; kept in $lib)"
    mkdir -p "$lib"
    (
      # Two builds at once would only slow each other.
      flock 9
      [ -f "$lib/librocksdb.a" ] && exit 0
      CARGO_TARGET_DIR=$RINGFOLD_CACHE/rocksdb-build cargo build --locked --release -p librocksdb-sys >&2 || exit 1
      built=$(ls -t "$RINGFOLD_CACHE"/rocksdb-build/release/build/librocksdb-sys-*/out/librocksdb.a | head -n1)
      strip --strip-debug "$built" 2>/dev/null
      cp "$built" "$lib/librocksdb.a.new" && mv "$lib/librocksdb.a.new" "$lib/librocksdb.a" && rm -rf "$RINGFOLD_CACHE/rocksdb-build"
    ) 9>"$RINGFOLD_CACHE/rocksdb.lock" || die "RocksDB did not compile (see above)"
  fi
  export ROCKSDB_LIB_DIR=$lib ROCKSDB_STATIC=1
}

need_all() {
  need_packages build-essential pkg-config libclang-dev protobuf-compiler git
  need_toolchain
  need_rocksdb
}
