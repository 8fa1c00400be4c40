#!/usr/bin/env bash
# Makes .venv from requirements.lock and installs this project into it, editable. Run by `make setup`.
# Does nothing when the last run succeeded with the same lock files; --force repeats it all the same. pillow-simd is
# built again when headers that it can use have been installed or removed since.
# --peers makes .venv-peers, what the benchmarks compare with, instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv locks="requirements.lock requirements-pillow.lock" force=
for arg in "$@"; do
    case $arg in
    --force) force=1 ;;
    --peers) venv=.venv-peers locks=requirements-peers.lock ;;
    *)
        echo "setup: unknown option '$arg'; usage: scripts/setup.sh [--force] [--peers]" >&2
        exit 2
        ;;
    esac
done

simd_cc=cc
if grep -qsw avx2 /proc/cpuinfo; then simd_cc="cc -mavx2"; fi
CC=${CC:-$simd_cc} # a compiler named by the caller stands as it is

# The libraries that pillow-simd uses, as far as the compiler finds their headers. Empty where there is no compiler.
libraries=$($CC -E -P -x c - 2>/dev/null <<'END' | paste -sd ' ' || true
#if __has_include(<zlib.h>)
zlib
#endif
#if __has_include(<jpeglib.h>)
jpeg
#endif
#if __has_include(<tiffio.h>)
tiff
#endif
#if __has_include(<webp/decode.h>) && __has_include(<webp/demux.h>)
webp
#endif
#if __has_include(<freetype2/ft2build.h>) || __has_include(<ft2build.h>)
freetype
#endif
END
)

# The stamp covers all that decides what is installed, the folder included: a venv cannot be moved.
hash=$({ cat $locks pyproject.toml scripts/setup.sh && echo "$simd_cc $libraries $PWD"; } | sha256sum | cut -c1-16)
stamp=$venv/.lock-$hash

if [ -e "$stamp" ] && [ -z "$force" ]; then exit 0; fi

log=$venv/setup.log
log_begun=
started=$SECONDS
fail() {
    echo "setup: $1" >&2
    if [ -n "$log_begun" ] && [ -s "$log" ]; then
        echo "setup: the end of $log:" >&2
        tail -n 25 "$log" >&2
    fi
    exit 1
}

# --- Python and the environment ---------------------------------------------------------------------------
is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
python=
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
    if "$candidate" -c "$is_new_enough" >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed; found $(python3 --version 2>/dev/null || echo none). \
Install one, or name it: PYTHON=/path/to/python3.11 make setup"

# The venv stays if its Python runs and it was made here, to its end: its scripts name the folder they were made in.
if ! "$venv/bin/python" -c "$is_new_enough" >/dev/null 2>&1 || [ "$(cat "$venv/.made-in" 2>/dev/null)" != "$PWD" ]; then
    rm -rf "$venv"
fi
rm -f "$venv"/.lock-*
mkdir -p "$venv"
: >"$log"
log_begun=1
if [ ! -e "$venv/.made-in" ]; then
    "$python" -m venv "$venv" >>"$log" 2>&1 || fail "no venv could be made with $python (Debian: apt-get install python3-venv)"
    echo "$PWD" >"$venv/.made-in"
fi
[ "$venv" != .venv ] || echo "setup: installing requirements.lock into $venv with $("$venv/bin/python" --version) (several minutes the first time; log: $log)"

# --- uv: the one on PATH, else the locked one -------------------------------------------------------------
# only NAME, all_but NAME: that package's lines of requirements.lock, or the others
only() { awk -v name="$1" '/^[^ #]/ { p = index($0, name "==") == 1 } p' requirements.lock; }
all_but() { awk -v name="$1" '/^[^ #]/ { p = index($0, name "==") == 1 } !p' requirements.lock; }

if command -v uv >/dev/null 2>&1; then
    uv=$(command -v uv)
else
    uv=$venv/bin/uv
    only uv >"$venv/lock-uv.txt"
    "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes --no-deps \
        -r "$venv/lock-uv.txt" >>"$log" 2>&1 || fail "uv could not be installed"
fi
export VIRTUAL_ENV=$PWD/$venv UV_LINK_MODE=${UV_LINK_MODE:-hardlink}
unset CONDA_PREFIX
# Where Python may keep no bytecode, as in many container images, each start would compile torch anew: some seconds.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1

if [ "$venv" = .venv-peers ]; then
    echo "setup: installing requirements-peers.lock into $venv (log: $log)"
    "$uv" pip sync --require-hashes requirements-peers.lock >>"$log" 2>&1 || fail "installing the peers failed"
    touch "$stamp"
    exit 0
fi

# --- Packages ---------------------------------------------------------------------------------------------
# `sync` installs exactly what is listed, without looking at dependencies, and removes what is listed no more.
only pillow-simd >"$venv/lock-simd.txt"
all_but pillow-simd >"$venv/lock-rest.txt"
simd_stamp=$venv/.simd-$({ cat "$venv/lock-simd.txt" && echo "$CC $libraries" && "$venv/bin/python" --version; } | sha256sum | cut -c1-16)

if [ -e "$simd_stamp" ] && [ -z "$force" ]; then # built by an earlier run: it stays
    "$uv" pip sync --require-hashes requirements.lock >>"$log" 2>&1 || fail "installing requirements.lock failed"
else
    rm -f "$venv"/.simd-*
    "$uv" pip sync --require-hashes "$venv/lock-rest.txt" >>"$log" 2>&1 || fail "installing requirements.lock failed"

    # --no-cache: a wheel that another build left in the cache may lack AVX2.
    echo "setup: building pillow-simd with CC='$CC' and $libraries" >>"$log"
    if CC=$CC "$uv" pip install --require-hashes --no-deps --no-cache --no-build-isolation \
        --no-binary pillow-simd -r "$venv/lock-simd.txt" >>"$log" 2>&1 &&
        "$venv/bin/python" -c 'from PIL import features; assert features.check("jpg") and features.check("zlib")' \
            >>"$log" 2>&1; then
        touch "$simd_stamp"
        lacking=$("$venv/bin/python" -c 'from PIL import features
losses = {"libtiff": "libtiff (compressed TIFF is refused)", "webp": "libwebp (WebP is refused)",
          "freetype2": "libfreetype (pictures are labelled in a small Latin font)"}
print(", ".join(loss for feature, loss in losses.items() if not features.check(feature)))')
        [ -z "$lacking" ] ||
            echo "setup: WARNING: pillow-simd was built without $lacking, since the headers are missing; to have them: apt-get install libtiff-dev libwebp-dev libfreetype-dev (Debian), then make setup" >&2
    else
        "$uv" pip uninstall pillow-simd >>"$log" 2>&1 || true
        "$uv" pip install --require-hashes --no-deps -r requirements-pillow.lock >>"$log" 2>&1 ||
            fail "neither pillow-simd nor Pillow could be installed"
        echo "setup: WARNING: pillow-simd did not build, so plain Pillow is used and chips resize up to ten times slower; for the fast one: apt-get install gcc python3-dev libjpeg62-turbo-dev zlib1g-dev libtiff-dev libwebp-dev libfreetype-dev (Debian), then scripts/setup.sh --force" >&2
    fi
fi

# --- This project -----------------------------------------------------------------------------------------
"$uv" pip install --no-deps --no-build-isolation -e . >>"$log" 2>&1 || fail "installing the project itself failed"
# For the first `sniper chips` alone: it would compile them itself.
rm -rf pipeline/__pycache__/kernels-* # of other versions
"$venv/bin/python" scripts/compile_kernels.py >>"$log" 2>&1 || fail "the planning kernels could not be compiled"

touch "$stamp"
echo "setup: done in $((SECONDS - started)) s: $("$venv/bin/python" -c 'import importlib.metadata as m, PIL
names = {d.metadata["Name"].lower() for d in m.distributions()}
print("pillow-simd" if "pillow-simd" in names else "Pillow", PIL.__version__ + ", torch", m.version("torch") + ", torchvision", m.version("torchvision"))')"
