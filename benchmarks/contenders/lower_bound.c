/* The least that the kernel lets one do: a bridge with N pods, by raw netlink, in C.
 *
 * Leaves what k8snet leaves: for each pod a netns with a name in /run/netns,
 * a veth pair (port in the bridge, eth0 inside), both up, an address and a default route,
 * IPv6 and calls of iptables off, fixed MACs. One thread goes from netns to netns; nothing is allocated.
 *
 * Protocol, on stdin and stdout (see ../play.py): "build N", then "teardown".
 * Runs inside the netns of the node. Sources: man 7 netlink, man 7 rtnetlink, linux/veth.h.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BRIDGE "br0"
#define GATEWAY "10.244.0.1"
#define PREFIX 16
#define PODS_A_BLOCK 250 /* as in plan.py: 10.244.(1 + i / 250).(1 + i % 250) */

static char buffer[4096];
static size_t used;

static void die(const char *what) { perror(what); exit(1); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* -- messages, one after the other in buffer ---------------------------------------- */

static void *put(const void *data, size_t size) {
    void *at = memcpy(buffer + used, data, size);
    memset(buffer + used + size, 0, NLMSG_ALIGN(size) - size);
    used += NLMSG_ALIGN(size);
    return at;
}

static struct nlmsghdr *begin(int type, int flags, const void *head, size_t size) {
    struct nlmsghdr header = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags};
    struct nlmsghdr *message = put(&header, sizeof header);
    put(head, size);
    return message;
}

static void end(struct nlmsghdr *message) { message->nlmsg_len = buffer + used - (char *)message; }

static struct rtattr *attribute(int type, const void *data, size_t size) {
    struct rtattr head = {.rta_type = type, .rta_len = RTA_LENGTH(size)};
    struct rtattr *at = put(&head, sizeof head);
    if (size)
        put(data, size);
    return at;
}

static void close_attribute(struct rtattr *at) { at->rta_len = buffer + used - (char *)at; }

static void ask(int socket, const char *what) {
    static char reply[4096];
    if (send(socket, buffer, used, 0) < 0)
        die(what);
    used = 0;
    ssize_t got = recv(socket, reply, sizeof reply, 0);
    if (got < 0)
        die(what);
    struct nlmsghdr *message = (struct nlmsghdr *)reply;
    for (; NLMSG_OK(message, got); message = NLMSG_NEXT(message, got)) {
        struct nlmsgerr *error = NLMSG_DATA(message);
        if (message->nlmsg_type == NLMSG_ERROR && error->error) {
            errno = -error->error;
            die(what);
        }
    }
}

static void add_up(int index, int flags) {
    struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    end(begin(RTM_NEWLINK, flags, &link, sizeof link));
}

static void add_address(int index, const char *text, int flags) {
    struct ifaddrmsg head = {.ifa_family = AF_INET, .ifa_prefixlen = PREFIX, .ifa_index = index};
    struct in_addr address, broadcast;
    inet_pton(AF_INET, text, &address);
    broadcast.s_addr = address.s_addr | htonl((1u << (32 - PREFIX)) - 1);
    struct nlmsghdr *message = begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL | flags, &head, sizeof head);
    attribute(IFA_LOCAL, &address, sizeof address);
    attribute(IFA_ADDRESS, &address, sizeof address);
    attribute(IFA_BROADCAST, &broadcast, sizeof broadcast);
    end(message);
}

static void add_default_route(const char *gateway) {
    struct rtmsg head = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
                         .rtm_type = RTN_UNICAST};
    struct in_addr via;
    inet_pton(AF_INET, gateway, &via);
    struct nlmsghdr *message = begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &head, sizeof head);
    attribute(RTA_GATEWAY, &via, sizeof via);
    end(message);
}

static void put_mac(int side, int pod) {
    unsigned char mac[6] = {2, side, 0, 0, pod >> 8, pod & 255};
    attribute(IFLA_ADDRESS, mac, sizeof mac);
}

static void add_pair(int pod, int bridge, int netns) {
    char port[IFNAMSIZ];
    struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, plain = {0};
    struct nlmsghdr *message = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &up, sizeof up);
    attribute(IFLA_IFNAME, port, snprintf(port, sizeof port, "veth%d", pod) + 1);
    put_mac(1, pod);
    attribute(IFLA_MASTER, &bridge, sizeof bridge);
    struct rtattr *info = attribute(IFLA_LINKINFO, NULL, 0);
    attribute(IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attribute(IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = attribute(VETH_INFO_PEER, NULL, 0);
    put(&plain, sizeof plain);
    attribute(IFLA_IFNAME, "eth0", 5);
    put_mac(2, pod);
    attribute(IFLA_NET_NS_FD, &netns, sizeof netns);
    close_attribute(peer), close_attribute(data), close_attribute(info);
    end(message);
}

static int add_bridge(int socket) {
    struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct nlmsghdr *message = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &up, sizeof up);
    attribute(IFLA_IFNAME, BRIDGE, sizeof BRIDGE);
    struct rtattr *info = attribute(IFLA_LINKINFO, NULL, 0);
    attribute(IFLA_INFO_KIND, "bridge", 6);
    close_attribute(info);
    end(message);
    ask(socket, "add bridge");
    int index = if_nametoindex(BRIDGE);
    add_address(index, GATEWAY, NLM_F_ACK);
    ask(socket, "add the gateway's address");
    return index;
}

/* -- pods ---------------------------------------------------------------------------- */

static int netlink(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        die("netlink socket");
    return fd;
}

static void make_netns(int pod) {
    char path[64];
    snprintf(path, sizeof path, "/run/netns/pod%d", pod);
    int fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (fd < 0)
        die(path);
    close(fd);
    if (unshare(CLONE_NEWNET) || mount("/proc/self/ns/net", path, NULL, MS_BIND, NULL))
        die("make a netns");
}

static void set(const char *path, const char *value) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return; /* this kernel has no such setting */
    if (fd < 0 || write(fd, value, strlen(value)) < 0)
        die(path);
    close(fd);
}

static void make_pod(int pod, int node, int bridge) {
    char address[32];
    make_netns(pod);
    set("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    set("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    add_pair(pod, bridge, here);
    ask(node, "add a veth pair");
    close(here);
    int inside = netlink();
    snprintf(address, sizeof address, "10.244.%d.%d", 1 + pod / PODS_A_BLOCK, 1 + pod % PODS_A_BLOCK);
    add_up(1, 0);
    add_up(2, 0); /* the first interface after lo */
    add_address(2, address, 0);
    add_default_route(GATEWAY);
    ask(inside, "configure a pod");
    close(inside);
}

static void build(int pods, int home) {
    int node = netlink(), bridge = add_bridge(node);
    for (int pod = 0; pod < pods; pod++)
        make_pod(pod, node, bridge);
    if (setns(home, CLONE_NEWNET))
        die("setns");
    close(node);
}

static void teardown(int pods) {
    char path[64];
    for (int pod = 0; pod < pods; pod++) {
        snprintf(path, sizeof path, "/run/netns/pod%d", pod);
        if (umount2(path, MNT_DETACH) || unlink(path))
            die(path);
    }
    struct ifinfomsg link = {.ifi_index = if_nametoindex(BRIDGE)};
    int node = netlink();
    end(begin(RTM_DELLINK, NLM_F_ACK, &link, sizeof link));
    ask(node, "delete the bridge");
    close(node);
}

int main(void) {
    char line[64];
    int pods = 0, home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        double begun = now();
        if (sscanf(line, "build %d", &pods) == 1)
            build(pods, home);
        else
            teardown(pods);
        printf("{\"seconds\": %.6f}\n", now() - begun);
        fflush(stdout);
    }
    return 0;
}
