# The first process of a node's machine, in mount, PID, UTS and IPC namespaces of its own: makes what a node's programs
# expect at its usual place, says "ready", and waits for orphans until it is killed.
#
# NAME: the host name. DIR: the node's files. LAB: the lab's. CGROUP: the parent of all control groups of the machine.
set -eu
hostname "$NAME"
mount -t proc proc /proc

# A kubelet sets these for the whole real machine. Here it finds them as it wants them and writes nothing.
mkdir -p "$DIR/sysctl"
pretend() {
    [ -e "/proc/sys/$1" ] || return 0
    echo "$2" > "$DIR/sysctl/${1##*/}"
    mount --bind "$DIR/sysctl/${1##*/}" "/proc/sys/$1"
}
pretend vm/overcommit_memory 1
pretend vm/panic_on_oom 0
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000
pretend kernel/keys/root_maxbytes 25000000

# A sysfs of its own, so that /sys/class/net is the node's; the control groups and the node's BPF filesystem in it.
mkdir -p "$DIR/cgroup"
mount --rbind /sys/fs/cgroup "$DIR/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$DIR/cgroup" /sys/fs/cgroup
umount -l "$DIR/cgroup"
mount --bind "$DIR/bpf" /sys/fs/bpf

# One parent in every hierarchy. A new cpuset of version 1 is empty, and then nothing can run in it.
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*/; do
    [ -e "$hierarchy/cgroup.procs" ] && mkdir -p "$hierarchy/$CGROUP" || continue
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy/tasks" ] || [ ! -e "$hierarchy/$CGROUP/$file" ] || cat "$hierarchy/$file" > "$hierarchy/$CGROUP/$file"
    done
done

# The real machine's directories get no new entries: those that the node needs are in a layer above them.
mkdir -p "$DIR/layer"
mount -t tmpfs -o mode=755 tmpfs "$DIR/layer"
over() {
    local upper="$DIR/layer/upper$1" work="$DIR/layer/work$1"
    mkdir -p "$upper" "$work"
    [ ! -d "$1" ] || mount -t overlay -o "lowerdir=$1,upperdir=$upper,workdir=$work" overlay "$1"
}
over /etc
over /opt
over /var/lib
over /var/log

# A /run of its own; the lab's files, with all mounts below them, stay where they were.
mkdir -p "$DIR/layer/run"
case $LAB in
    /run/*)
        mkdir -p "$DIR/layer/run/${LAB#/run/}"
        mount --rbind "$LAB" "$DIR/layer/run/${LAB#/run/}"
        ;;
esac
mount --rbind "$DIR/layer/run" /run

# at PLACE DIRECTORY
at() {
    mkdir -p "$1" "$DIR/$2"
    mount --bind "$DIR/$2" "$1"
}
at /run/veni run
# What is instance metadata on EC2: it knows which instance asks.
at /run/veni-cloud cloud
at /run/containerd containerd/run
at /var/lib/containerd containerd/root
at /var/lib/kubelet kubelet
at /var/lib/cni cni
at /var/lib/veni state
at /etc/cni/net.d net.d
at /opt/cni/bin bin
at /var/log/pods log/pods
at /var/log/containers log/containers
mkdir -p /run/netns /run/lock
[ -e "$LAB/owner.json" ] || { echo "$LAB is below a directory that the machine replaces: choose another VENI_LAB_DIR" >&2; exit 1; }

# What a pod mounts into a volume that it shares with the node is seen on the node.
mount --make-rshared /
echo ready
while :; do
    sleep 1000000 &
    wait
done
