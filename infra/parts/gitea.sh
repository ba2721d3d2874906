#!/usr/bin/env bash
# A Gitea of one's own, the primary of tests: gitea.sh start DIR PORT | stop DIR. Listens on loopback and keeps all it
# has in DIR. Accounts: `siteadmin` (administrator), `alice`, `bob`; DIR/env has the URL, their passwords and tokens.
set -euo pipefail
# shellcheck source=infra/parts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

arguments "$@"
if [ "$action" = stop ]; then
	halt
	exit
fi
gitea=$(binary gitea)
url=http://127.0.0.1:$port

# Gitea refuses root, so root runs it as nobody, with a right to read, as the cache folder is often in root's home.
# That does not help git, which asks access(2) about its repositories: DIR itself must be within nobody's reach.
user=$(id -un)
as=(env)
if [ "$(id -u)" = 0 ]; then
	user=nobody
	nobody=(setpriv --reuid "$(id -u $user)" --regid "$(id -g $user)" --clear-groups)
	"${nobody[@]}" test -x "$dir" || die "$user cannot enter $dir: chmod a+x the folders above it, or choose another"
	as=("${nobody[@]}" --inh-caps=+dac_read_search --ambient-caps=+dac_read_search env)
fi
# The newer git where it is installed: SHA-256 repositories need 2.42.
as+=(HOME="$dir" USER="$user" PATH="$(part_dir git)/inst/bin:$PATH" "$gitea" --config "$dir/app.ini" --work-path "$dir/work")

# Once, since Gitea writes its own secrets into it. The port may be another at the next start.
[ -f "$dir/app.ini" ] || cat >"$dir/app.ini" <<END
APP_NAME = packmirror tests
RUN_USER = $user
[server]
PROTOCOL = http
HTTP_ADDR = 127.0.0.1
HTTP_PORT = $port
ROOT_URL = $url/
STATIC_ROOT_PATH = $(part_dir gitea)/static
OFFLINE_MODE = true
DISABLE_SSH = true
LFS_START_SERVER = true
; how long a stop waits for requests that do not end
GRACEFUL_HAMMER_TIME = 3s
[database]
DB_TYPE = sqlite3
[security]
INSTALL_LOCK = true
[service]
DISABLE_REGISTRATION = true
[webhook]
ALLOWED_HOST_LIST = loopback
[indexer]
ISSUE_INDEXER_TYPE = db
[cron]
ENABLED = false
[log]
MODE = console
LEVEL = Warn
END
sed -i "s|^HTTP_PORT = .*|HTTP_PORT = $port|; s|^ROOT_URL = .*|ROOT_URL = $url/|" "$dir/app.ini"
mkdir -p "$dir/work"
[ "$(id -u)" != 0 ] || chown -R "$user" "$dir"

umask 077
# Accounts come before the server: then there is no moment at which it answers without them. `accounts` is written
# whole, at the end; what a broken start left behind is made anew.
if [ ! -f "$dir/accounts" ]; then
	rm -rf "$dir/work/data"
	"${as[@]}" migrate >>"$dir/log" 2>&1 || die "no database; the log is $dir/log"
	for name in siteadmin alice bob; do
		password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
		admin=
		[ $name != siteadmin ] || admin=--admin
		"${as[@]}" admin user create --username $name --password "$password" --email "$name@example.com" \
			--must-change-password=false $admin >>"$dir/log" 2>&1 || die "no account $name; the log is $dir/log"
		token=$("${as[@]}" admin user generate-access-token --username $name --token-name tests --scopes all --raw 2>>"$dir/log")
		echo "GITEA_${name^^}_PASSWORD=$password"
		echo "GITEA_${name^^}_TOKEN=$token"
	done >"$dir/accounts.new"
	mv "$dir/accounts.new" "$dir/accounts"
fi

launch /api/healthz "${as[@]}" web
{ echo "GITEA_URL=$url"; cat "$dir/accounts"; } >"$dir/env"
