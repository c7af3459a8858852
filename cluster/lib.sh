# Shared by cluster/up, cluster/down and tests/run: where things lie, what must be installed, how a node is started.
# Sourced, never run. Everything is addressed by path or by the pid in a node's own directory.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DATA_DEFAULT=$ROOT/cluster/data
GRPC_BASE=${CLUSTER_GRPC_BASE:-7400} # node n speaks gRPC on 127.0.0.1:7400+n
HTTP_BASE=${CLUSTER_HTTP_BASE:-7500} # and serves metrics and health on 127.0.0.1:7500+n
RUST_MINIMUM=88  # of 1.88, the rust-version in Cargo.toml

if [ -t 2 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' PLAIN=$'\e[0m'; else BOLD='' DIM='' PLAIN=''; fi

say() { printf '%s\n' "$*" >&2; }
step() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Installs what a bare Debian machine lacks for the build, or says precisely what to install.
prerequisites() {
  local missing=()
  command -v g++ >/dev/null || missing+=(g++)
  command -v make >/dev/null || missing+=(make)
  command -v ccache >/dev/null || missing+=(ccache)
  ls /usr/lib/llvm-*/lib/libclang.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1 || [ -n "${LIBCLANG_PATH:-}" ] || missing+=(libclang-dev)
  if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      step "installing ${missing[*]} (RocksDB is compiled from source)"
      export DEBIAN_FRONTEND=noninteractive
      apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        { apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null; } ||
        fail "apt-get could not install ${missing[*]}; install them and run this again"
    elif [ "${missing[*]}" != ccache ]; then
      fail "missing: ${missing[*]}. As root: apt-get install ${missing[*]}"
    fi
  fi
  [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.$RUST_MINIMUM or newer from https://rustup.rs"
  local minor
  minor=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
  [ "${minor:-0}" -ge "$RUST_MINIMUM" ] || fail "Rust 1.$RUST_MINIMUM or newer is needed, this is $(rustc --version)"
}

# What only the Python client's test needs; without it that test says that it was skipped.
python_prerequisites() {
  python3 -c 'import ensurepip, venv' 2>/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    step "installing python3-venv (for the test of docs/python)"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3 python3-venv >/dev/null 2>&1 || true
  fi
}

# One target directory, one compiler cache, one profile: RocksDB is compiled once for builds, tests and checks alike.
build_environment() {
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/trivet
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
  # Checksums of RocksDB by instruction instead of by table: needs a processor of 2010 or newer.
  if [ "$(uname -m)" = x86_64 ]; then export CXXFLAGS="${CXXFLAGS:--msse4.2 -mpclmul}"; fi
  if command -v ccache >/dev/null; then
    export CC="ccache gcc" CXX="ccache g++" CCACHE_DIR=$cache/ccache CCACHE_MAXSIZE=4G CCACHE_BASEDIR=$HOME CCACHE_NOHASHDIR=1
  fi
}

# Sets TRIVET_BIN: the one given, or the one built here.
find_or_build_trivet() {
  if [ -n "${TRIVET_BIN:-}" ]; then
    [ -x "$TRIVET_BIN" ] || fail "TRIVET_BIN=$TRIVET_BIN is not an executable file"
    return
  fi
  prerequisites
  build_environment
  step "building trivet (the first time RocksDB is compiled too: 20 to 40 minutes on two cores)"
  (cd "$ROOT" && cargo build --release --locked --bin trivet) || fail "the build failed"
  TRIVET_BIN=$CARGO_TARGET_DIR/release/trivet
}

grpc_address() { echo "127.0.0.1:$((GRPC_BASE + $1))"; }
http_address() { echo "127.0.0.1:$((HTTP_BASE + $1))"; }
node_directory() { echo "$DATA/node$1"; }

# Numbers of the nodes that have a directory under $DATA, ascending.
known_nodes() {
  local directory
  for directory in "$DATA"/node[0-9]*; do
    [ -d "$directory" ] && echo "${directory##*/node}"
  done | sort -n
}

# Prints the pid of node $1 if it runs. The command line is compared, so a reused pid is never mistaken for a node.
node_pid() {
  local directory pid
  directory=$(node_directory "$1")
  pid=$(cat "$directory/pid" 2>/dev/null) || return 1
  [ -r "/proc/$pid/cmdline" ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "$directory" && echo "$pid"
}

# host:port,host:port,… of nodes 1 to $1.
endpoints() {
  local n list=''
  for n in $(seq 1 "$1"); do list+="${list:+,}$(grpc_address "$n")"; done
  echo "$list"
}
