#!/usr/bin/env bash
# Runs the kernels' tests as other CPUs would, under qemu's user mode: 64-bit ARM (compiled for it) and x86-64 without AVX.
#
#   bash scripts/other_machines.sh [--install]
#
# What is missing is named (`not run: ...`) and passes, or fails with BITNET_REQUIRE_OTHER_MACHINES=1. `--install` installs
# it first, as root on Debian: qemu, a linker for ARM, and a Rust compiler with ARM's standard library where this one's
# toolchain has none. Programs for ARM are built in target/other_machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=aarch64-unknown-linux-gnu
case ${1:-} in
  --install) install=1 ;;
  '') install= ;;
  *) echo "usage: bash scripts/other_machines.sh [--install]" >&2; exit 2 ;;
esac

unset BITNET_KERNEL

failed=()
not_run() {
  echo "not run: $1: $2"
  if [[ ${BITNET_REQUIRE_OTHER_MACHINES:-} == 1 ]]; then failed+=("$1"); fi
}

# A compiler, new enough and with the standard library for ARM: the usual one, or Debian's.
arm_rustc() {
  local rustc wanted
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  for rustc in rustc /usr/bin/rustc; do
    compgen -G "$("$rustc" --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib" >/dev/null || continue
    printf '%s\n' "$wanted" "$("$rustc" --version | cut -d' ' -f2)" | sort -V -C || continue
    echo "$rustc"
    return
  done
  return 1
}

emulator() {
  command -v "qemu-$1-static" || command -v "qemu-$1"
}

# install PACKAGE...
install() {
  local log
  log=$(mktemp)
  echo "installing $*"
  if ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
    tail -n 3 "$log"
    echo "could not be installed; going on with what is there"
  fi
  rm -f "$log"
}

if [[ $install ]] && ! { emulator x86_64 && emulator aarch64 && arm_rustc && command -v aarch64-linux-gnu-gcc; } >/dev/null; then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    # Of two architectures, since the library for ARM is a package of that architecture.
    { dpkg --add-architecture arm64 && apt-get update; } >/dev/null 2>&1 || echo "apt-get update failed"
    install qemu-user-static
    install gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    arm_rustc >/dev/null || install rustc-web libstd-rust-web-dev:arm64
  else
    echo "--install needs root and apt-get; going on with what is there"
  fi
fi

# compile CARGO-ARGUMENTS...: sets `units` and `suite`, the test programs of bitnet-infer, and `program`, bitnet-infer itself.
compile() {
  local log
  log=$(mktemp)
  if ! cargo test --locked --no-run "$@" 2>&1 | tee "$log"; then
    rm -f "$log"
    return 1
  fi
  units=$(realpath "$(sed -nE 's/.*Executable unittests src\/lib.rs \((.*\/bitnet_infer-[0-9a-f]+)\)$/\1/p' "$log" | head -n 1)")
  suite=$(realpath "$(sed -nE 's/.*Executable tests\/suite.*\((.*)\)$/\1/p' "$log" | head -n 1)")
  program=$(dirname "$(dirname "$units")")/bitnet-infer
  rm -f "$log"
}

# run_tests PROGRAM FILTER...: in the folder of the crate, as cargo runs tests. None at all is a failure.
run_tests() {
  local output
  if output=$(cd bitnet-infer && "${cpu[@]}" "$@" 2>&1) && grep -E '^test result: ok\. [1-9]' <<<"$output"; then return; fi
  tail -n 30 <<<"$output"
  return 1
}

# check EMULATOR CPU KERNELS: the last of KERNELS must be chosen there, and the tests pass with all of them. Tests of the
# whole engine run too if a fourth argument says `engine`.
check() {
  local cpu=("$1" -cpu "$2") name="$2, kernels $3" chosen start=$SECONDS
  printf -- '-- %s\n' "$name"
  export BITNET_REQUIRE_KERNELS=$3
  chosen=$("${cpu[@]}" "$program" kernels | sed -n 's/ *runs here, chosen$//p')
  if [[ $chosen != "${3##*,}" ]]; then
    echo "chosen: '$chosen', expected: '${3##*,}'"
    failed+=("$name")
  elif ! run_tests "$units" kernels:: || { [[ ${4:-} ]] && ! run_tests "$suite" consistency:: schemes::; }; then
    failed+=("$name")
  else
    echo "passed in $((SECONDS - start)) seconds"
  fi
}

if ! qemu=$(emulator x86_64); then
  not_run "x86-64 without AVX" "no qemu-x86_64"
elif [[ $(uname -m) != x86_64 ]]; then
  not_run "x86-64 without AVX" "this machine does not compile for it"
elif ! compile --workspace; then
  failed+=("compiling for x86-64")
else
  check "$qemu" Nehalem scalar
fi

if ! qemu=$(emulator aarch64); then
  not_run "64-bit ARM" "no qemu-aarch64"
elif ! command -v aarch64-linux-gnu-gcc >/dev/null; then
  not_run "64-bit ARM" "no linker aarch64-linux-gnu-gcc"
elif ! RUSTC=$(arm_rustc); then
  not_run "64-bit ARM" "no standard library of Rust for $target"
else
  export RUSTC CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS # They would replace the flags of the next line.
  # Threads of a program that is linked dynamically hang under qemu.
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"
  # Dependencies are not what is slow under qemu: they need not be compiled for speed.
  if ! compile -p bitnet-infer --lib --test suite --target $target --target-dir target/other_machines \
    --config 'profile.dev.package."*".opt-level=1'; then
    failed+=("compiling for 64-bit ARM")
  else
    check "$qemu" cortex-a72 scalar,neon
    check "$qemu" neoverse-n1 scalar,neon,neon-dot
    check "$qemu" max scalar,neon,neon-dot,neon-i8mm engine
  fi
fi

if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
