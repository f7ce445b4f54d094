# shellcheck shell=bash
# Sourced by run and test: what must be installed, then the virtual environment .venv of the checkout.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "capstand: these packages are missing and only root can install them; as root run:" >&2
        echo "    $*" >&2
        exit 1
    fi
}

# install_packages PACKAGE...: by apt, only those that are missing.
install_packages() {
    command -v dpkg-query >/dev/null || return 0 # not Debian: the build says what it misses
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return 0
    echo "capstand: installing ${missing[*]}" >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null
}

# What building pyalsaaudio and systemd-python takes; Python's own part only for Debian's Python.
build_packages() {
    local names=(gcc libasound2-dev libsystemd-dev pkg-config)
    if [[ $(readlink -f "$(command -v python3 || echo /usr/bin/python3)") == /usr/bin/python3* ]]; then
        names+=(python3 python3-venv python3-dev)
    fi
    echo "${names[@]}"
}

# constrained PIP ARGUMENT...: of every package, for building too, the release that was tested.
constrained() {
    local list="file://${root// /%20}/scripts/constraints.txt"
    PIP_CONSTRAINT=$list PIP_BUILD_CONSTRAINT=$list "$@"
}

require_python() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "capstand: python3 is $(python3 -V 2>&1); expected Python 3.11 or newer" >&2
        exit 1
    }
}

# make_environment [EXTRA]: .venv with capstand in it, made again when pyproject.toml has changed.
make_environment() {
    local extra=${1:-} mark
    # shellcheck disable=SC2046
    install_packages $(build_packages)
    [ "$extra" != test ] || install_packages dbus-daemon # a private bus for tests/test_reserve.py
    require_python
    mark=$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" <(python3 -V) | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$root/.venv/mark$extra" 2>/dev/null)" != "$mark" ]; then
        echo "capstand: preparing .venv (once)" >&2
        [ -x "$root/.venv/bin/python" ] || python3 -m venv "$root/.venv"
        constrained "$root/.venv/bin/pip" install -q --use-pep517 --disable-pip-version-check \
            -e "$root${extra:+[$extra]}" 2> >(grep -v '^WARNING: Location' >&2)
        echo "$mark" >"$root/.venv/mark$extra"
    fi
}
