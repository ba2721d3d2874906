# shellcheck shell=bash
# Sourced by the scripts beside it: what is pinned, where it lies, how a server is started and stopped.

# MinIO is archived: this is its last commit, by pseudo-version since its release tags are no Go versions.
readonly MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
readonly VERSITYGW_VERSION=v1.8.0
readonly GITEA_VERSION=v1.26.4
readonly GIT_VERSION=2.47.3
readonly LFS_VERSION=v3.8.1
# The last release that the module proxy has; it names no versions of what it needs.
readonly H2SPEC_VERSION=v2.2.1
readonly H2SPEC_NEEDS='github.com/spf13/cobra@v1.10.2 github.com/fatih/color@v1.19.0 golang.org/x/net@v0.62.0'
# The last release whose modules can all be had from the module proxy.
readonly BUILDKITE_VERSION=v3.50.0
# Fetches what tests/clients/jgit/pom.xml names.
readonly MAVEN_DEPENDENCY_VERSION=3.8.1

parts=${PACKMIRROR_PARTS:-${XDG_CACHE_HOME:-$HOME/.cache}/packmirror-parts}

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# The other clients' programs, and beside them the versions of all that they need: what they hash to is their version.
clients_source=$(dirname "${BASH_SOURCE[0]}")/../../tests/clients
clients_version() {
	(cd "$clients_source" && find . -type f -not -path '*/node_modules/*' -not -path '*/target/*' -not -name README.md -print0 |
		sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
}

# Prints the folder of a part; the version is in its name, so that two checkouts can share the cache.
part_dir() {
	case $1 in
	minio) echo "$parts/minio-${MINIO_VERSION##*-}" ;;
	versitygw) echo "$parts/versitygw-${VERSITYGW_VERSION#v}" ;;
	gitea) echo "$parts/gitea-${GITEA_VERSION#v}" ;;
	git) echo "$parts/git-$GIT_VERSION" ;;
	lfs) echo "$parts/lfs-${LFS_VERSION#v}" ;;
	h2spec) echo "$parts/h2spec-${H2SPEC_VERSION#v}" ;;
	tools) echo "$parts/tools-buildkite-${BUILDKITE_VERSION#v}" ;;
	clients) echo "$parts/clients-$(clients_version)" ;;
	*) die "no such part: $1" ;;
	esac
}

# Prints the path of a server's binary.
binary() {
	local path
	path=$(part_dir "$1")/$1
	[ -x "$path" ] || die "$1 is not installed: run infra/parts/install.sh $1"
	echo "$path"
}

# Checks `start|stop DIR PORT`, makes DIR and sets action, dir (absolute) and port.
arguments() {
	action=${1-} dir=${2-} port=${3-}
	case $action:$#:$port in
	start:3:[0-9]* | stop:2: | stop:3:*) ;;
	*) die "usage: ${0##*/} start DIR PORT | stop DIR [PORT]" ;;
	esac
	mkdir -p "$dir"
	dir=$(cd "$dir" && pwd)
}

# Says whether the process in DIR/pid lives and is ours: every server here has DIR in its arguments, so a number
# that another process got since does not match. Nor does a zombie, which has none.
alive() {
	local pid
	pid=$(cat "$dir/pid" 2>/dev/null) || return 1
	{ cat "/proc/$pid/cmdline" 2>/dev/null || ps -o args= -p "$pid"; } | tr '\0' ' ' | grep -qF -- "$dir/"
}

# launch HEALTH COMMAND...: runs COMMAND in the background and returns when HEALTH answers.
launch() {
	local health=$1 _
	shift
	alive && die "already running, process $(cat "$dir/pid"): stop it first"
	! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || die "port $port is taken"
	nohup "$@" >>"$dir/log" 2>&1 </dev/null &
	echo $! >"$dir/pid"
	for _ in {1..300}; do
		if curl -fs -o /dev/null --noproxy '*' --max-time 2 "http://127.0.0.1:$port$health"; then return; fi
		kill -0 "$!" 2>/dev/null || break
		sleep 0.2
	done
	halt
	tail -n 20 "$dir/log" >&2
	die "not ready; its log is $dir/log"
}

# Stops the server of DIR, if there is one, and returns when it is gone.
halt() {
	local pid _
	if alive; then
		pid=$(cat "$dir/pid")
		kill "$pid" 2>/dev/null || true
		for _ in {1..100}; do
			alive || break
			sleep 0.1
		done
		if alive; then
			kill -9 "$pid" 2>/dev/null || true
			while alive; do sleep 0.1; done
		fi
	fi
	rm -f "$dir/pid"
}

# What both S3 servers have in common: who may write, and the settings that let packmirror in.
readonly s3_user=packmirror s3_password=packmirror-secret s3_bucket=packmirror

# Makes the bucket, or finds it there, and writes DIR/env.
s3_ready() {
	local url=http://127.0.0.1:$port status empty
	# Older curls sign without this header, and versitygw insists on it.
	empty=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
	status=$(curl -sS -o "$dir/answer" -w '%{http_code}' --noproxy '*' --aws-sigv4 aws:amz:us-east-1:s3 \
		--user "$s3_user:$s3_password" -H "x-amz-content-sha256: $empty" -X PUT "$url/$s3_bucket") || { halt; die "the bucket could not be made"; }
	case $status in
	200 | 409) rm "$dir/answer" ;;
	*) halt; die "making the bucket was answered with $status: $(cat "$dir/answer")" ;;
	esac
	cat >"$dir/env" <<-END
	AWS_ENDPOINT_URL=$url
	AWS_ACCESS_KEY_ID=$s3_user
	AWS_SECRET_ACCESS_KEY=$s3_password
	AWS_REGION=us-east-1
	AWS_ALLOW_HTTP=true
	S3_BUCKET=$s3_bucket
	END
}
