#!/bin/bash
# Start a Ceph object gateway on loopback: ceph_rgw.sh FOLDER PORT MONITOR_PORT
#
# The first start makes the store in FOLDER, and a user with the keys AWS_ACCESS_KEY_ID and
# AWS_SECRET_ACCESS_KEY of the environment; later ones start it again with what it holds. The
# daemons go to the background; their process ids are in FOLDER/run/*.pid.
# Needs root and the Debian packages radosgw ceph-mon ceph-osd ceph-base.
set -euo pipefail
folder=$1 port=$2 monitor=v2:127.0.0.1:$3
conf=$folder/ceph.conf
as_root=(-c "$conf" --setuser root --setgroup root)

make_store() {
  mkdir -p "$folder"/{mon,osd,run,log,rgw}
  local fsid uuid key
  fsid=$(cat /proc/sys/kernel/random/uuid) uuid=$(cat /proc/sys/kernel/random/uuid)
  cat > "$conf" <<CONF
[global]
fsid = $fsid
mon initial members = a
mon host = [$monitor]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $folder/keyring
auth allow insecure global id reclaim = false
run dir = $folder/run
admin socket = $folder/run/\$name.asok
log file = $folder/log/\$name.log
pid file = $folder/run/\$name.pid
crash dir = $folder/log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data = $folder/mon
mon data avail crit = 1
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = 4294967296
osd memory target = 1073741824
[osd]
keyring = $folder/osd/keyring
[client.rgw]
rgw data = $folder/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
CONF
  ceph-authtool --create-keyring "$folder/keyring" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *'
  ceph-authtool "$folder/keyring" --gen-key -n client.rgw --cap mon 'allow rwx' --cap osd 'allow rwx'
  ceph-authtool --create-keyring "$folder/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
  cat "$folder/keyring" >> "$folder/mon.keyring"
  key=$(ceph-authtool --gen-print-key)
  ceph-authtool --create-keyring "$folder/osd/keyring" -n osd.0 --add-key "$key"
  monmaptool --create --fsid "$fsid" --addv a "[$monitor]" "$folder/monmap"
  ceph-mon "${as_root[@]}" -i a --mkfs --monmap "$folder/monmap" --keyring "$folder/mon.keyring"
  ceph-mon "${as_root[@]}" -i a
  ceph -c "$conf" osd new "$uuid" -i - <<< "{\"cephx_secret\": \"$key\"}"
  ceph-osd "${as_root[@]}" -i 0 --mkfs --osd-uuid "$uuid"
}

fresh=
if [ -f "$conf" ]; then
  ceph-mon "${as_root[@]}" -i a
else
  fresh=1
  make_store
fi
ceph-osd "${as_root[@]}" -i 0
until ceph -c "$conf" osd stat | grep -q '1 up'; do sleep 0.3; done
radosgw "${as_root[@]}" -n client.rgw
until curl -s -o /dev/null "http://127.0.0.1:$port/"; do sleep 0.3; done
if [ -n "$fresh" ]; then
  radosgw-admin -c "$conf" -n client.rgw user create --uid=test --display-name=test \
    --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY"
fi
