# shellcheck shell=bash
# Sourced by the scripts beside it: what must be installed, then the environment .venv of the checkout.
#
# Some of this runs as root, so nothing in it takes code from the current directory, from PYTHON*
# variables or from a PATH that others may write to; see $clean. An environment is made aside and
# takes its place whole: one that was interrupted is not there, and one that does not fit (another
# Python, a checkout that was moved) is made anew.

umask 022 # also under 077: the service's user runs what root installs
unset CDPATH
# Root's PATH without folders that are not root's, or that others may write to.
trusted_path() {
    local folder of kept='' IFS=:
    for folder in $PATH; do
        [[ $folder == /* ]] && of=$(/usr/bin/stat -Lc '%u %A' "$folder" 2>/dev/null) || continue
        [[ $of == '0 d'????-??-* ]] && kept+=${kept:+:}$folder
    done
    echo "$kept"
}
if [ "$EUID" = 0 ]; then
    PATH=$(trusted_path)
    unset TMPDIR # who owns that folder could lead what root writes there elsewhere
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Before a command: it gets of the environment only this, and starts in /.
clean=(/usr/bin/env -i -C / "PATH=$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore)
if [ "$EUID" = 0 ]; then clean+=("HOME=$(echo ~root)"); else clean+=("HOME=${HOME:-/nonexistent}"); fi
for name in TERM LANG LC_ALL LC_CTYPE {http,https,no,all}_proxy {HTTP,HTTPS,NO,ALL}_PROXY \
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE SOURCE_DATE_EPOCH \
    PIP_{INDEX_URL,EXTRA_INDEX_URL,NO_INDEX,FIND_LINKS,TRUSTED_HOST,CERT,PROXY,DEFAULT_TIMEOUT}; do
    [ -z "${!name+x}" ] || clean+=("$name=${!name}")
done
if [ -e "$root/scripts/constraints.txt" ]; then # of every package the release that was tested
    clean+=("PIP_CONSTRAINT=file://${root// /%20}/scripts/constraints.txt")
    clean+=("PIP_BUILD_CONSTRAINT=file://${root// /%20}/scripts/constraints.txt")
fi

fail() {
    echo "capstand: $*" >&2
    exit 1
}

# step WORDS COMMAND...: says what is done; what the command says is shown to nobody unless it fails,
# and then as one sentence.
step() {
    local words=$1 log drawer=''
    shift
    log=$(mktemp "${TMPDIR:-/tmp}/capstand-XXXXXXXX.log")
    echo "capstand: $words" >&2
    if [ -t 2 ]; then
        draw "$log" "$$" &
        drawer=$!
    fi
    if "$@" >"$log" 2>&1 </dev/null; then
        [ -z "$drawer" ] || end_drawing "$drawer"
        rm -f "$log"
    else
        [ -z "$drawer" ] || end_drawing "$drawer"
        fail "$words failed: $(cause "$log"); what was said is in $log"
    fi
}

# A bar with what apt tells of its progress, or how many of pip's packages have come; and the time.
draw() {
    local log=$1 caller=$2 percent bar
    SECONDS=0
    while sleep 0.5 && kill -0 "$caller" 2>/dev/null; do
        percent=$(awk -F: '
            /^dlstatus:/ { done = $3 / 2 }
            /^pmstatus:/ { done = 50 + $3 / 2 }
            /^(Collecting|Obtaining|Processing) / { done += (90 - done) / 8 }
            /^Installing collected/ { done = 90 }
            END { print int(done) }' "$log" 2>/dev/null)
        printf -v bar '%*s' "$((${percent:-0} * 30 / 100))" ''
        printf '\r    [%-30s] %3d %%, %d s ' "${bar// /#}" "${percent:-0}" "$SECONDS" >&2
    done
}

end_drawing() {
    kill "$1" 2>/dev/null
    wait "$1" 2>/dev/null || true
    printf '\r\e[K' >&2
}

# cause LOG: why apt or pip failed, for a person.
cause() {
    local unreachable='temporary failure|could not resolve|name or service not known|unreachable'
    unreachable+='|no route to host|failed to establish a new connection|could not connect|getaddrinfo'
    unreachable+='|connection (refused|timed out|reset)|cannot initiate the connection|proxyerror'
    if grep -qiE "$unreachable" "$1"; then
        echo "the package server cannot be reached; no network, or a proxy is missing"
    elif grep -qiE 'certificate.verify|certificate verification' "$1"; then
        echo "the package server's certificate is not trusted; behind a proxy that replaces" \
            "certificates, PIP_CERT names a file with the right ones"
    elif grep -qi 'no space left' "$1"; then
        echo "the disk is full"
    elif grep -qiE 'could not get lock|unable to acquire the dpkg' "$1"; then
        echo "another program is installing packages; try again when it is done"
    elif grep -qiE 'unable to locate package|no installation candidate' "$1"; then
        echo "this system's package sources do not have what is needed; see /etc/apt"
    elif grep -qiE 'no matching distribution' "$1"; then
        echo "the package index that is configured does not have what is needed"
    else
        (grep -iE '^ *(error|e:|fatal)' "$1" || cat "$1") | tail -n 1 | tr -dc '[:print:]' | cut -c1-200
    fi
}

need_64_bit() {
    local machine
    machine=$(uname -m)
    if [ "$(getconf LONG_BIT)" != 64 ] || [[ $machine =~ ^(i.86|arm.*)$ ]]; then
        fail "this is a 32-bit system ($machine); capstand needs a 64-bit one, on a Raspberry Pi the" \
            "64-bit Raspberry Pi OS"
    fi
}

# install_packages PACKAGE...: by apt, only those that are missing.
install_packages() {
    command -v dpkg-query >/dev/null || return 0 # not Debian: the build says what it misses
    local missing=() name sudo=()
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return 0
    if [ "$EUID" != 0 ]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || sudo -v; }; then
            sudo=(sudo)
        else
            fail "packages of the system are missing, and only root can install them; as root run:
    apt-get update
    apt-get install -y --no-install-recommends ${missing[*]}
then start $0 again; the rest needs no root"
        fi
    fi
    # shellcheck disable=SC2016
    step "installing ${missing[*]}" "${sudo[@]}" "${clean[@]}" DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get update -q
        apt-get install -y -q -o APT::Status-Fd=1 -o DPkg::Lock::Timeout=120 \
            --no-install-recommends "$@"' sh "${missing[@]}"
}

# What building pyalsaaudio and systemd-python takes; Python's own part only for Debian's Python.
build_packages() {
    local names=(gcc libasound2-dev libsystemd-dev pkg-config)
    if [[ $(base_python) == /usr/bin/python3* ]]; then
        names+=(python3 python3-venv python3-dev)
    fi
    echo "${names[@]}"
}

system_python=/usr/bin/python3

is_new_enough() { [ -x "$1" ] && "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

require_python() {
    local python
    python=$(base_python)
    [ -x "$python" ] || fail "python3 is missing; expected Python 3.11 or newer"
    is_new_enough "$python" || fail "python3 is $("$python" -V 2>&1); expected Python 3.11 or newer"
}

# The interpreter itself, as /usr/bin/python3.11: a link python3 is another one after an upgrade. The
# system's, where it is new enough: it is kept up to date, every user may read it, and it is built for
# speed, which not every other is (docs/measured.md).
base_python() {
    local one
    for one in "$system_python" "$(command -v python3)"; do
        if is_new_enough "$one"; then
            readlink -f "$one"
            return
        fi
    done
    readlink -f "$(command -v python3 || echo "$system_python")"
}

# fill ENVIRONMENT PIP-ARGUMENT...: a new environment in a folder that is not there yet.
fill() {
    local folder=$1
    shift
    "${clean[@]}" "$(base_python)" -I -m venv "$folder" &&
        "${clean[@]}" "$folder/bin/python" -I -m pip install --use-pep517 --retries 2 "$@" &&
        sed -i '1,2s|/bin/python[0-9.]*"\{0,1\}|& -I|' "$folder/bin/capstand"
}

# fits EXTRA MARK: is .venv whole, and for this checkout, this Python and these dependencies?
fits() {
    [ "$(cat "$root/.venv/mark$1" 2>/dev/null)" = "$2" ] &&
        "${clean[@]}" "$root/.venv/bin/python" -I -c 'import capstand, alsaaudio, systemd.daemon' 2>/dev/null
}

# make_environment [EXTRA]: .venv with capstand in it, made anew when it does not fit.
make_environment() {
    local extra=${1:-} mark names
    need_64_bit
    read -ra names <<<"$(build_packages)"
    if [ "$extra" = test ]; then
        names+=(dbus-daemon)                            # a private bus for tests/sharing
        names+=(libspeexdsp1 libebur128-1 swh-plugins) # for tests/processing
    fi
    install_packages "${names[@]}"
    require_python
    mark=$({
        cat "$root/pyproject.toml" "$root/scripts/constraints.txt" 2>/dev/null
        echo "$root $(base_python) $("$(base_python)" -V)"
    } | sha256sum | cut -d' ' -f1)
    fits "$extra" "$mark" && return
    [ -w "$root" ] || fail "$root may not be written by $(id -un), and .venv has to be made there"
    exec 9<"$root"
    flock -n 9 || {
        echo "capstand: waiting for another start, which is making .venv" >&2
        flock 9
    }
    fits "$extra" "$mark" || renew_environment "$extra" "$mark"
    exec 9<&-
}

renew_environment() {
    local extra=$1 mark=$2 fresh=$root/.venv.new file
    rm -rf "$fresh" "$root/.venv.old" 2>/dev/null ||
        fail "$fresh or .venv.old is left over and not yours; run: sudo rm -rf '$fresh' '$root/.venv.old'"
    trap 'rm -rf "$root/.venv.new"' EXIT
    step "making .venv (once; about 150 MB)" fill "$fresh" -e "$root${extra:+[$extra]}"
    grep -lIrF "$fresh/" "$fresh/bin" | while IFS= read -r file; do
        sed -i "s|/\.venv\.new/|/.venv/|g" "$file"
    done
    echo "$mark" >"$fresh/mark"
    [ -z "$extra" ] || echo "$mark" >"$fresh/mark$extra"
    # Made by root in somebody's checkout, it is theirs.
    [ "$EUID" != 0 ] || chown -hR --reference="$root" "$fresh"
    [ ! -e "$root/.venv" ] && [ ! -L "$root/.venv" ] || mv -T "$root/.venv" "$root/.venv.old"
    mv -T "$fresh" "$root/.venv"
    trap - EXIT
    rm -rf "$root/.venv.old"
}
