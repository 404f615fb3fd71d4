#!/bin/bash
# A Ceph cluster for tests: one monitor, one OSD in memory and an S3 gateway, on loopback.
#
#   ceph-rgw.sh DIR MON_PORT HTTP_PORT HTTPS_PORT PEM_FILE DOMAIN USER:ID:SECRET...
#
# All state is in DIR, which must be empty. The script runs until its standard input
# ends, so that it never outlives the program that started it, even if that is killed.
# It needs the Debian packages ceph-mon, ceph-osd and radosgw.
set -euo pipefail
dir=$1 mon_port=$2 http_port=$3 https_port=$4 pem=$5 domain=$6
shift 6
cd "$dir"
finish() {
  local children
  children=$(jobs -p)
  # shellcheck disable=SC2086 # one word each
  [ -z "$children" ] || kill -9 $children
  wait
  rm -rf "${dir:?}"/*
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

# paxos: a change of the cluster's map waits a second by default, and there are
# about ten. admin socket: its path would be too long. The rest lets a cluster with
# one small OSD work.
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >ceph.conf <<EOF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon_port
public addr = 127.0.0.1
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
run dir = $dir
admin socket =
pid file =
log file = $dir/\$name.log
mon cluster log file = $dir/cluster.log
keyring = $dir/keyring
mon data = $dir/mon
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd class load list = *
osd class default list = *
rgw frontends = beast endpoint=127.0.0.1:$http_port ssl_endpoint=127.0.0.1:$https_port ssl_certificate=$pem
rgw dns name = $domain
rgw enable usage log = false
EOF
export CEPH_CONF=$dir/ceph.conf
mkdir mon osd
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *' >keyring.log
ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >keyring.log
ceph-authtool keyring --gen-key -n osd.0 --cap mon 'allow *' --cap osd 'allow *' >keyring.log
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port]" monmap >monmap.log
ceph-mon --mkfs -i a --monmap monmap --keyring keyring
ceph-mon -f -i a &
osd=$(cat /proc/sys/kernel/random/uuid)
ceph osd new "$osd" >osd.log
ceph auth import -i keyring
ceph-osd -i 0 --mkfs --osd-uuid "$osd"
ceph-osd -f -i 0 &
for user in "$@"; do
  IFS=: read -r name id secret <<<"$user"
  radosgw-admin user create --uid="$name" --display-name="$name" --access-key="$id" --secret="$secret" >user.log
done
radosgw -n client.admin -f &
cat >/dev/null
