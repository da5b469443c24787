# What cloud-init would do with a NoCloud seed disc, as far as tests need it; init sources this.
# The disc is one that an aetherscale agent made: its meta-data is JSON with one value to a line.

find_seed() {
  for entry in /sys/class/block/*; do
    # where ISO 9660 has a volume's label
    label=$(dd if="/dev/${entry##*/}" bs=1 skip=32808 count=7 2> /dev/null)
    [ "$label" = "cidata " ] && echo "/dev/${entry##*/}" && return
  done
}

# A value of the meta-data, by its key.
meta_data() { sed -n 's/^ "'"$1"'": "\(.*\)",\{0,1\}$/\1/p' /run/seed/meta-data; }

# Before the network: the name goes into the request for an address.
read_seed() {
  seed=$(find_seed)
  [ -n "$seed" ] && mkdir -p /run/seed && mount -o ro -t iso9660 "$seed" /run/seed || return
  instance=$(meta_data instance-id)
  hostname "$(meta_data local-hostname)"
  say "seed $instance $(hostname)"
  mkdir -p -m 700 /root/.ssh
  sed -n '/^ "public-keys"/,/^ \]/s/^  "\(.*\)",\{0,1\}$/\1/p' /run/seed/meta-data |
    sed 's/\\\(["\\]\)/\1/g' > /root/.ssh/authorized_keys
  chmod 600 /root/.ssh/authorized_keys
  # Another instance on this disk: a copy of another VM's, whose host keys are not its own.
  new_instance=
  if [ "$(cat /data/instance 2> /dev/null)" != "$instance" ]; then
    new_instance=yes
    rm -f /data/dropbear/*
    echo "$instance" > /data/instance
    sync
  fi
}

# After all else, as cloud-init does: scripts run once per instance, with the network up.
finish_seed() {
  [ -n "$seed" ] || return
  if [ -n "$new_instance" ] && [ "$(head -c 2 /run/seed/user-data)" = "#!" ]; then
    cp /run/seed/user-data /run/user-data
    chmod 700 /run/user-data
    /run/user-data > /dev/console 2>&1 < /dev/null
  fi
  umount /run/seed
  echo "aetherscale: cloud-init finished after $(cut -d' ' -f1 /proc/uptime) s" > /dev/console
}
