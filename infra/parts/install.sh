#!/usr/bin/env bash
# Installs the real parts that tests run against: install.sh [PART...], all of them by default.
#
#   minio versitygw    S3 servers              gitea    a Git host with accounts and webhooks
#   git                git with its own tests  conformance-deps    system packages (apt-get, as root)
#   clients            what tests/clients needs, with its programs in bin/
#   h2spec             questions about HTTP/2 for a server
#   tools              programs that use git, for docs/clients.md
#   lfs                git-lfs, the client
#   proxies            nginx and HAProxy (system packages)
#   valgrind           for benches/instructions (a system package)
#
# They are pinned (lib.sh), go to ${PACKMIRROR_PARTS:-~/.cache/packmirror-parts}, and are built once.
set -euo pipefail
# shellcheck source=infra/parts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What may be missing from a machine, as PROBE=PACKAGE: a command, a C header or a Python module, and Debian's package of it.
# A probe and not the package's name, because the same header comes from several packages that exclude each other.
compiler='cc=gcc stdlib.h=libc6-dev'
git_build="$compiler make=make xz=xz-utils perl=perl curl/curl.h=libcurl4-openssl-dev expat.h=libexpat1-dev
	zlib.h=zlib1g-dev openssl/ssl.h=libssl-dev"
# apache2-bin is the server alone: the package apache2 would also start one on port 80.
conformance="$git_build python3=python3 /usr/sbin/apache2=apache2-bin"
# Where systemd runs, Debian's packages also start a server of their own: nginx-light one on port 80.
proxies='/usr/sbin/nginx=nginx-light /usr/sbin/haproxy=haproxy /usr/bin/openssl=openssl'
tools='python3=python3 pip.py=python3-pip node=nodejs npm=npm'
clients="$compiler python3=python3 ensurepip.py=python3-venv javac=default-jdk-headless mvn=maven node=nodejs npm=npm"

has() {
	case $1 in
	*.py) python3 -c "import ${1%.py}" 2>/dev/null ;;
	*.h) printf '#include <%s>\n' "$1" | cc -E -x c - >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

# need PROBE=PACKAGE...: installs the packages that are missing, or says which they are.
need() {
	local pair missing=()
	for pair in "$@"; do
		has "${pair%%=*}" || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null || die "missing, and there is no apt-get to install them: ${missing[*]} (Debian's names)"
	[ "$(id -u)" = 0 ] || die "missing: run as root: apt-get install -y --no-install-recommends ${missing[*]}"
	say "apt-get install ${missing[*]}"
	{
		apt-get update &&
			DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
	} >"$parts/apt.log" 2>&1 || { tail -n 20 "$parts/apt.log" >&2; die "apt-get failed; its log is $parts/apt.log"; }
}

need_go() { command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"; }

check_minio() { need_go; }
build_minio() { GOBIN=$1 go install "github.com/minio/minio@$MINIO_VERSION"; }

check_versitygw() { need_go; }
build_versitygw() { GOBIN=$1 go install "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION"; }

check_gitea() {
	need_go
	# shellcheck disable=SC2086  # words
	need $compiler
}
# `go install` refuses a module whose go.mod has replace lines. In a module of our own with that same go.mod they hold.
build_gitea() {
	local source path=code.gitea.io/gitea
	source=$(cd / && go mod download -json "$path@$GITEA_VERSION" | sed -n 's/^\t*"Dir": "\(.*\)",*$/\1/p')
	mkdir "$1/build"
	cp "$source/go.sum" "$1/build/go.sum"
	sed 's/^module .*/module packmirror.invalid\/gitea/' "$source/go.mod" >"$1/build/go.mod"
	chmod u+w "$1/build/go.sum"
	cd "$1/build"
	go mod edit -require "$path@$GITEA_VERSION"
	go build -mod=mod -tags 'sqlite sqlite_unlock_notify' -ldflags "-X main.Version=${GITEA_VERSION#v}" -o "$1/gitea" "$path"
	# It wants these beside it; the built web assets it can do without.
	mkdir "$1/static"
	cp -R "$source/templates" "$source/options" "$source/public" "$1/static"
	chmod -R u+w "$1/static"
	cd / && rm -rf "$1/build"
}

check_tools() {
	need_go
	# shellcheck disable=SC2086  # words
	need $tools
}
build_tools() {
	GOBIN=$1 go install "github.com/buildkite/agent/v3@$BUILDKITE_VERSION"
	mv "$1/agent" "$1/buildkite-agent"
}

check_h2spec() { need_go; }
# Not `go install`: in a module of our own the versions of what it needs can be named.
build_h2spec() {
	local path=github.com/summerwind/h2spec need
	mkdir "$1/build"
	cd "$1/build"
	go mod init packmirror.invalid/h2spec
	go mod edit -require "$path@$H2SPEC_VERSION+incompatible"
	for need in $H2SPEC_NEEDS; do go mod edit -require "$need"; done
	go build -mod=mod -o "$1/h2spec" "$path/cmd/h2spec"
	cd / && rm -rf "$1/build"
}

check_lfs() { need_go; }
build_lfs() { GOBIN=$1 go install "github.com/git-lfs/git-lfs/v3@$LFS_VERSION"; }

check_git() {
	command -v apt-get >/dev/null || die "git $GIT_VERSION comes from Debian's source package, and apt-get is missing"
	# shellcheck disable=SC2086  # words
	need $git_build
}
# The whole built tree stays: its tests are what the conformance suite runs. `inst/bin/git` is the installed git.
build_git() {
	local work=$1/.fetch keys=/usr/share/keyrings/debian-archive-keyring.gpg codename mirror
	mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
	# The mirror this machine uses for its own release also has the suite that we want.
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	mirror=$(apt-get indextargets --format "\$(RELEASE) \$(COMPONENT) \$(REPO_URI)" 'Created-By: Packages' |
		sed -n "s/^$codename main //p" | head -n 1)
	mirror=${PACKMIRROR_DEBIAN_MIRROR:-$mirror}
	[ -n "$mirror" ] || { echo "no Debian mirror in apt's sources: set PACKMIRROR_DEBIAN_MIRROR to one's URL"; return 1; }
	[ -f "$keys" ] || { echo "$keys is missing: install debian-archive-keyring"; return 1; }
	echo "deb-src [signed-by=$keys] $mirror trixie main" >"$work/sources.list"
	# Everything apt-get writes goes to $work, so that it needs no root and leaves the machine's own lists alone.
	local apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
		-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
	"${apt[@]}" update
	(cd "$work" && "${apt[@]}" source --download-only git)
	[ -f "$work/git_$GIT_VERSION.orig.tar.xz" ] || { echo "the suite has another git by now"; ls "$work"; return 1; }
	tar -xJf "$work/git_$GIT_VERSION.orig.tar.xz" --strip-components=1 -C "$1"
	rm -rf "$work"
	make -C "$1" -j"$(nproc)" NO_GETTEXT=1 NO_TCLTK=1 prefix="$1/inst" all install
}

check_clients() {
	need_go
	command -v cargo >/dev/null || die "cargo is missing: install Rust"
	# shellcheck disable=SC2086  # words
	need $clients
}
# Each gets its libraries, as its lock file has them, and a script in bin.
build_clients() {
	local at=$1 from name
	from=$(cd "$clients_source" && pwd)
	mkdir "$at/bin"
	for name in dulwich pygit2; do
		python3 -m venv "$at/$name"
		"$at/$name/bin/pip" install --quiet --no-deps --requirement "$from/$name/requirements.txt"
		cp "$from/$name/client.py" "$at/$name"
		runs "$name" "'$at/$name/bin/python' '$at/$name/client.py'"
	done
	(cd "$from/go-git" && go build -buildvcs=false -o "$at/bin/go-git" .)
	mkdir -p "$at/jgit/classes"
	mvn -q -B -f "$from/jgit/pom.xml" "org.apache.maven.plugins:maven-dependency-plugin:$MAVEN_DEPENDENCY_VERSION:copy-dependencies" \
		-DoutputDirectory="$at/jgit/lib"
	javac -cp "$at/jgit/lib/*" -d "$at/jgit/classes" "$from/jgit/Client.java"
	# These runs are too short for the better compiler.
	runs jgit "java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '$at/jgit/classes:$at/jgit/lib/*' Client"
	mkdir "$at/isomorphic-git"
	cp "$from"/isomorphic-git/* "$at/isomorphic-git"
	npm --prefix "$at/isomorphic-git" ci --ignore-scripts --no-audit --no-fund
	runs isomorphic-git "node '$at/isomorphic-git/client.js'"
	for name in gix gix-older; do
		cargo build --locked --manifest-path "$from/$name/Cargo.toml" --target-dir "$at/build"
		mv "$at/build/debug/packmirror-test-client-$name" "$at/bin/$name"
	done
	rm -rf "$at/build"
}
# runs NAME COMMAND: makes bin/NAME.
runs() {
	printf '#!/bin/sh\nexec %s "$@"\n' "$2" >"$at/bin/$1"
	chmod +x "$at/bin/$1"
}

# ensure PART: builds it, unless its marker is there. The marker is written last: what broke half-way is done anew.
ensure() {
	local part=$1 at log=$parts/$1.log
	at=$(part_dir "$part")
	if [ ! -f "$at/.installed" ]; then
		"check_$part"
		rm -rf "$at"
		mkdir -p "$at"
		say "building $part, a few minutes; its log is $log"
		# In a process of its own: `set -e` does not hold in what stands left of `||`.
		bash "${BASH_SOURCE[0]}" --build "$part" "$at" >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "$part failed; its log is $log"; }
		basename "$at" >"$at/.installed"
	fi
	printf '%-16s %s\n' "$part" "$at"
}

if [ "${1-}" = --build ]; then
	"build_$2" "$3"
	exit
fi

mkdir -p "$parts"
parts=$(cd "$parts" && pwd)
# Tests that start at the same time must not build the same part twice.
if command -v flock >/dev/null; then
	exec 9>"$parts/.lock"
	flock 9
fi
[ $# -gt 0 ] || set -- minio versitygw gitea git conformance-deps proxies valgrind
for part in "$@"; do
	case $part in
	minio | versitygw | gitea | git | clients | h2spec | tools | lfs) ensure "$part" ;;
	conformance-deps)
		# shellcheck disable=SC2086  # words
		need $conformance
		printf '%-16s %s\n' "$part" 'system packages'
		;;
	valgrind)
		need valgrind=valgrind
		printf '%-16s %s\n' "$part" 'a system package'
		;;
	proxies)
		# shellcheck disable=SC2086  # words
		need $proxies
		printf '%-16s %s\n' "$part" 'system packages'
		;;
	*) die "no such part: $part" ;;
	esac
done
