#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what the make targets named as arguments need and is missing, with
# apt. Services that a package brings are not started.
set -eu

missing=
# need COMMAND PACKAGE...
need() {
	command=$1
	shift
	sh -c "$command" >/dev/null 2>&1 || missing="$missing $*"
}

for target in "$@"; do
	case $target in
	test)
		need 'test -e /etc/ssl/certs/ca-certificates.crt' ca-certificates # for Go's modules
		need 'command -v gcc && test -e /usr/include/stdlib.h' gcc libc6-dev # the race detector
		need 'command -v chromium && fc-list | grep -q .' chromium fontconfig fonts-dejavu-core # screenshots want letters
		need 'command -v curl' curl
		need 'command -v h2load' nghttp2-client
		need 'command -v haproxy' haproxy
		need 'command -v java && command -v javac' default-jdk-headless
		need 'command -v nft' nftables
		need 'command -v nginx' nginx
		need 'command -v node' nodejs
		need 'command -v npm' npm
		need 'command -v openssl' openssl
		need 'command -v psql && ls /usr/lib/postgresql/*/bin/initdb' postgresql
		need '/usr/bin/python3 -c "import grpc, httpx, requests"' python3-grpcio python3-httpx python3-requests
		need 'command -v wrk' wrk
		;;
	e2e)
		need 'test -e /etc/ssl/certs/ca-certificates.crt' ca-certificates # for npm's packages
		need 'command -v npm' npm
		need 'command -v chromium && fc-list | grep -q .' chromium fontconfig fonts-dejavu-core
		need 'test -e /usr/share/bash-completion/bash_completion' bash-completion
		need 'command -v fish' fish
		need 'command -v zsh' zsh
		need 'command -v runc' runc
		need 'command -v nft' nftables
		need 'command -v iptables' iptables
		need 'command -v ip' iproute2
		need 'command -v nsenter' util-linux
		need 'command -v bpftool' bpftool
		need 'command -v curl' curl
		need 'command -v nginx' nginx
		need 'ls /usr/lib/postgresql/*/bin/initdb' postgresql
		;;
	verify)
		need 'command -v clang-14' clang-14
		need 'command -v git' git
		need 'command -v make' make
		need 'command -v npm' npm
		need 'command -v llvm-strip-14' llvm-14
		need 'command -v shellcheck' shellcheck
		;;
	kernels)
		need 'command -v qemu-system-x86_64' qemu-system-x86
		# A dynamic busybox cannot run in the virtual machine.
		# shellcheck disable=SC2016 # need expands it
		need 'b=$(command -v busybox) && ! ldd "$b"' busybox-static
		need 'command -v xz' xz-utils
		;;
	bench)
		need 'command -v h2load' nghttp2-client
		need 'command -v haproxy' haproxy
		need 'command -v nginx' nginx
		need 'command -v wrk' wrk
		;;
	*)
		echo "setup: nothing is known of the target $target" >&2
		exit 2
		;;
	esac
done
[ -n "$missing" ] || exit 0

hint="setup: missing packages:$missing"
if ! command -v apt-get >/dev/null; then
	echo "$hint (no apt-get here: install what corresponds to them)" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "$hint (not root: run apt-get install$missing)" >&2
	exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
fi
log=$(mktemp)
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
	cat "$log" >&2
	rm -f "$log"
	echo "setup: apt-get could not install$missing" >&2
	exit 1
fi
rm -f "$log"
