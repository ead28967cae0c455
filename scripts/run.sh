#!/bin/sh
# `make run` and `make demo`: nodes on this machine, a repository's history loaded and checked.
#
#   run.sh serve|check   builds, then starts the nodes; REPO, DATA, NODES, PORT from the environment
#   run.sh load|try ...  what runs beside the nodes; `ringfold dev` has set RINGFOLD_ENDPOINTS
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
bin=$CARGO_TARGET_DIR/release

lookups_to_try() { # REPO
  say "serving at $RINGFOLD_ENDPOINTS; try, from another terminal:"
  echo "  export PATH=$bin:\$PATH RINGFOLD_ENDPOINTS=$RINGFOLD_ENDPOINTS"
  # Two paths that need no quotes.
  git -C "$1" ls-tree -r -z --name-only HEAD | tr '\0' '\n' | grep -v -e '[^A-Za-z0-9._/-]' -e '^\.' | head -n 2 | sed 's/^/  ringfold lookup file-/'
  echo "  ringfold list --category file"
  echo "  ringfold status"
  say "Ctrl-C ends it"
}

case ${1:-} in
  load)
    exec "$bin/git-history" run --repo "$2"
    ;;
  try)
    "$bin/git-history" run --repo "$2"
    lookups_to_try "$2"
    ;;
  serve | check)
    # Said before anything is built, for that takes a while.
    command -v git >/dev/null 2>&1 || need_all
    repo=$(git -C "${REPO:-.}" rev-parse --show-toplevel) || die "REPO=${REPO:-.} is no git repository; set REPO to one"
    git -C "$repo" rev-parse -q --verify 'HEAD^{commit}' >/dev/null || die "$repo has no commit yet; set REPO to a repository that has"
    need_all
    say "building (release)"
    cargo build --locked --release -p ringfold-node -p ringfold-cli -p ringfold-git-history --bins
    mode=$1
    set -- dev --nodes "${NODES:-3}" --port "${PORT:-2600}"
    [ -z "${DATA:-}" ] || set -- "$@" --data "$DATA"
    if [ "$mode" = serve ]; then
      exec "$bin/ringfold" "$@" --stay -- sh scripts/run.sh try "$repo"
    fi
    exec "$bin/ringfold" "$@" -- sh scripts/run.sh load "$repo"
    ;;
  *)
    die "usage: run.sh serve|check (with REPO, DATA, NODES, PORT from the environment)"
    ;;
esac
