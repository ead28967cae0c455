# Sourced by the Makefile and the scripts: where caches live, and what a build needs. Installs what
# is missing, says what it does, and where it cannot says what to install. Plain sh, also under -eu.
#
# RINGFOLD_CACHE    kept outside the checkout (default: $XDG_CACHE_HOME/ringfold or ~/.cache/ringfold)
# CARGO_TARGET_DIR  honoured; default $RINGFOLD_CACHE/target
# ROCKSDB_LIB_DIR   honoured: the folder of a librocksdb.a of the version in Cargo.lock

say() { printf 'ringfold: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

RINGFOLD_CACHE=${RINGFOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ringfold}
mkdir -p "$RINGFOLD_CACHE" || die "cannot create the cache $RINGFOLD_CACHE; set RINGFOLD_CACHE to a folder that can be written"
export RINGFOLD_CACHE
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$RINGFOLD_CACHE/target}"

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif ! command -v sudo >/dev/null 2>&1; then return 1
  elif [ -t 0 ]; then sudo "$@"
  # Nobody is there to type a password.
  else sudo -n "$@"
  fi
}

# apt_install LOG PACKAGE...: waits for another apt rather than failing beside it.
apt_install() {
  log=$1
  shift
  as_root apt-get -o DPkg::Lock::Timeout=300 update -q >"$log" 2>&1 \
    || say "apt-get update failed (see $log); going on with the package lists that are there"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    install -y -q --no-install-recommends "$@" >>"$log" 2>&1
}

# Installs Debian packages that are missing, all in one call.
need_packages() {
  missing=
  for p in "$@"; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
  done
  [ -z "$missing" ] && return 0
  say "installing packages:$missing"
  # shellcheck disable=SC2086 # a list of names
  apt_install "$RINGFOLD_CACHE/apt.log" $missing \
    || die "could not install them (see $RINGFOLD_CACHE/apt.log). As root: apt-get update && apt-get install$missing"
}

# Elsewhere nothing is installed: what cannot be found is named, once, with Debian's names for it.
need_tools() {
  missing=
  command -v c++ >/dev/null 2>&1 || missing="$missing build-essential"
  command -v git >/dev/null 2>&1 || missing="$missing git"
  command -v protoc >/dev/null 2>&1 || [ -n "${PROTOC:-}" ] || missing="$missing protobuf-compiler"
  [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p 2>/dev/null | grep -q libclang || missing="$missing libclang-dev"
  [ -z "$missing" ] || die "please install what Debian calls:$missing"
}

need_toolchain() {
  PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  export PATH
  if ! command -v rustup >/dev/null 2>&1; then
    say "installing rustup (https://rustup.rs)"
    rustup_init=$RINGFOLD_CACHE/rustup-init.sh
    { command -v curl >/dev/null 2>&1 \
        && curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$rustup_init" \
        && sh "$rustup_init" -y -q --no-modify-path --profile minimal --default-toolchain none; } >&2 \
      || apt_install "$RINGFOLD_CACHE/apt.log" rustup \
      || die "could not install rustup; please install it (https://rustup.rs), then run this again"
  fi
  channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  [ -n "$channel" ] || die "no channel in rust-toolchain.toml; run this from the root of the checkout"
  # Explicitly, for rustup may be set not to install by itself (RUSTUP_AUTO_INSTALL=0).
  if ! rustup run "$channel" cargo clippy --version >/dev/null 2>&1 || ! rustup run "$channel" rustfmt --version >/dev/null 2>&1; then
    say "installing Rust $channel"
    rustup toolchain install "$channel" --no-self-update --profile minimal --component rustfmt --component clippy >&2 \
      || die "rustup could not install Rust $channel"
  fi
}

# RocksDB is compiled once on a machine and linked into every profile.
need_rocksdb() {
  if [ -n "${ROCKSDB_LIB_DIR:-}" ]; then
    # The crate would look for a shared library otherwise.
    [ ! -f "$ROCKSDB_LIB_DIR/librocksdb.a" ] || export ROCKSDB_STATIC="${ROCKSDB_STATIC:-1}"
    return 0
  fi
  key=$( { grep -A1 '^name = "librocksdb-sys"' Cargo.lock; cat .cargo/config.toml; c++ --version | head -n1; uname -m; } | cksum | cut -d' ' -f1)
  lib=$RINGFOLD_CACHE/rocksdb/$key
  if [ ! -f "$lib/librocksdb.a" ]; then
    mkdir -p "$lib"
    (
      # Two builds at once would only slow each other.
      flock -n 9 || { say "another build is compiling RocksDB; waiting for it"; flock 9; }
      [ ! -f "$lib/librocksdb.a" ] || exit 0
      say "compiling RocksDB once for this machine (11 to 14 minutes on two cores; kept in $lib)"
      CARGO_TARGET_DIR=$RINGFOLD_CACHE/rocksdb-build cargo build --locked --release -p librocksdb-sys >&2 || exit 1
      # shellcheck disable=SC2012 # cargo's own names; the newest of them
      built=$(ls -t "$RINGFOLD_CACHE"/rocksdb-build/release/build/librocksdb-sys-*/out/librocksdb.a | head -n1)
      strip --strip-debug "$built" 2>/dev/null || true
      # Renamed into its place, so that a build cut short leaves nothing that looks whole.
      cp "$built" "$lib/librocksdb.a.new" && mv "$lib/librocksdb.a.new" "$lib/librocksdb.a" && rm -rf "$RINGFOLD_CACHE/rocksdb-build"
    ) 9>"$RINGFOLD_CACHE/rocksdb.lock" || die "RocksDB did not compile (see above)"
  fi
  export ROCKSDB_LIB_DIR="$lib" ROCKSDB_STATIC=1
}

need_all() {
  if command -v apt-get >/dev/null 2>&1 && command -v dpkg-query >/dev/null 2>&1; then
    need_packages build-essential pkg-config libclang-dev protobuf-compiler iproute2 git ca-certificates curl
  else
    need_tools
  fi
  need_toolchain
  need_rocksdb
}
