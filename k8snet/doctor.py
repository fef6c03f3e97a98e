"""What this machine can do: each ability tried for real, in a sandbox, with the remedy.

Nothing is asked of versions, ids or lists of modules: a kernel may lack what its
version has, and root may lack what an ordinary user's sandbox can do.
"""
from __future__ import annotations

import contextlib
import html
import json
import os
import platform
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from k8snet import sandbox
from k8snet.errors import K8snetError, Timeout
from k8snet.jupyter import workdir
from k8snet.jupyter.chapters import find_chapters
from k8snet.linux import run as programs

__all__ = ["ABILITIES", "Ability", "Finding", "Machine", "Report", "look", "probe_all", "remedy", "show"]

PROBE_S = 8.0  # seconds that one ability may take
SANDBOX_S = 90.0  # seconds for all of them
AT_ONCE = 4
BEFORE_PROBE = ("unshare", "--net", "--")
MODULES, LOADED = Path("/lib/modules", platform.release()), Path("/sys/module")

# until_ok COMMAND tries again for 4 s; the folder $tmp and the process $bg go away with the probe
PRELUDE = """
set -e
bg=
tmp=$(mktemp -d)
trap 'code=$?; [ -z "$bg" ] || kill $bg 2>/dev/null || true; rm -rf "$tmp"; exit $code' EXIT
until_ok() { for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if "$@" >"$tmp/out" 2>&1; then return 0; fi; sleep 0.2; done; cat "$tmp/out" >&2; return 1; }
"""


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that a lab may need, and the shell script that does it in a new netns."""

    name: str
    needed_by: str
    script: str
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    core: bool = False  # no part of the book can do without it
    bare: bool = False  # tried without a netns, and where there is no sandbox, too
    remedy: str = ""  # where neither a package nor a module is what is missing


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Whether one ability is there."""

    ability: str
    ok: bool
    core: bool
    needed_by: str
    reason: str = ""  # what the last line of the failing attempt said
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where k8snet runs."""

    linux: str  # release of the kernel
    python: str
    user: str
    memory_mb: int  # MB in all
    memory_free_mb: int  # MB that can be had now
    disk_free_mb: int  # MB, where the working copy is
    working_copy: str
    state: str
    platform: str = "Linux, or WSL2 on Windows; macOS and Windows through a Linux virtual machine"


VETH = "ip link add name a type veth peer name b; "
LO = "ip link set dev lo up; "
IPTABLES = """
{0} -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080
{0} -t nat -A POSTROUTING -j MASQUERADE
{0} -A FORWARD -m conntrack --ctstate ESTABLISHED -m comment --comment x -j ACCEPT"""
NGINX = LO + """
cat > "$tmp/conf" <<END
daemon off; pid $tmp/pid; error_log stderr; events {}
http { access_log off; client_body_temp_path $tmp/b; proxy_temp_path $tmp/p; fastcgi_temp_path $tmp/f;
uwsgi_temp_path $tmp/u; scgi_temp_path $tmp/s; server { listen 127.0.0.1:80; return 200 hello; } }
END
nginx -p "$tmp" -c "$tmp/conf" 2>"$tmp/log" & bg=$!
until_ok curl -sf --noproxy '*' http://127.0.0.1/"""
TCPDUMP = LO + """
timeout 5 tcpdump -nc1 -i lo -w "$tmp/pcap" icmp & bg=$!
ping -qi0.2 -c10 127.0.0.1; wait $bg"""
NFT = """
nft 'add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; add rule ip t c masquerade'
nft 'add map ip t m { type ipv4_addr . inet_service : verdict; }'"""
NFT_TRACE = LO + """
nft 'add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c meta nftrace set 1'
timeout 5 nft monitor trace > "$tmp/trace" & bg=$!
ping -qi0.2 -c5 127.0.0.1; until_ok grep trace "$tmp/trace\""""
CONNTRACK = LO + """
iptables -A OUTPUT -m conntrack --ctstate NEW
ping -qc1 -W2 127.0.0.1; conntrack -L | grep icmp"""
IPSET = "ipset create s hash:ip; ipset add s 10.0.0.1; iptables -A INPUT -m set --match-set s src -j DROP"
CNI = """
plugin=$(ls /usr/lib/cni/bridge /opt/cni/bin/bridge 2>/dev/null | head -n1)
test -n "$plugin" || { echo "no plugin named bridge in /usr/lib/cni or /opt/cni/bin" >&2; exit 1; }
echo '{"cniVersion": "1.0.0"}' | CNI_COMMAND=VERSION "$plugin" """
DNSMASQ = LO + """
dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --listen-address=127.0.0.1 \\
    --bind-interfaces --pid-file="$tmp/pid" --address=/x.test/10.9.8.7 & bg=$!
until_ok sh -c 'dig +short +tries=1 +time=1 x.test @127.0.0.1 | grep 10.9.8.7'"""
BIRD = LO + """
echo "router id 10.0.0.1; protocol device {}" > "$tmp/conf"
bird -f -c "$tmp/conf" -s "$tmp/ctl" -P "$tmp/pid" & bg=$!
until_ok birdc -s "$tmp/ctl" show status"""
BRIDGE = f"{VETH} ip link add name br0 type bridge; ip link set dev a master br0; "
NETNS = 'ip netns add "doctor-$$"; ip netns exec "doctor-$$" true; ip netns delete "doctor-$$"'

KVM = """
import fcntl, os
if fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE00) != 12: raise SystemExit("another version of KVM's API")
"""
BPF = """
import ctypes, os, platform
number = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
attributes = (ctypes.c_uint32 * 18)(2, 4, 8, 1)  # an array map of one 8-byte value
if libc.syscall(number, 0, attributes, 72) < 0: raise SystemExit("bpf(): " + os.strerror(ctypes.get_errno()))
"""
IPVS = """
from pyroute2 import IPVS, NetlinkError
try:
    with IPVS() as ipvs: list(ipvs.dump())
except NetlinkError as error:
    raise SystemExit(f"netlink: {error.args[-1]}")
"""


def _python(code: str) -> str:
    return f"{sys.executable} - <<'END'{code}END\n"



ABILITIES = (
    Ability(name="netns", core=True, needed_by="every chapter", programs=("ip",), script=NETNS),
    Ability(name="veth", core=True, needed_by="02 and later", programs=("ip",), modules=("veth",), script=VETH),
    Ability(name="bridge", core=True, needed_by="03 and later", programs=("ip",), modules=("bridge",), script=BRIDGE),
    Ability(name="bridge-nf", core=True, needed_by="04 and later: a bridge that obeys iptables",
            modules=("br_netfilter",), script=f"{BRIDGE} echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables"),
    Ability(name="iptables-nft", core=True, needed_by="01, 04, and kube-proxy's iptables mode",
            programs=("iptables-nft",), modules=("nf_tables", "nft_compat", "nf_nat"),
            script=IPTABLES.format("iptables-nft")),
    Ability(name="conntrack", core=True, needed_by="04 and later", programs=("conntrack", "ping", "iptables"),
            modules=("nf_conntrack", "nf_conntrack_netlink"), script=CONNTRACK),
    Ability(name="nginx", core=True, needed_by="04 and later", programs=("nginx", "curl"), script=NGINX),
    Ability(name="graphviz", core=True, needed_by="every diagram", programs=("dot",),
            script="echo 'graph { a -- b }' | dot -Tsvg"),
    Ability(name="tcpdump", needed_by="captures by hand", programs=("tcpdump", "ping"), modules=("af_packet",),
            script=TCPDUMP),
    Ability(name="iptables-legacy", needed_by="very large sets of Services", programs=("iptables-legacy",),
            modules=("ip_tables", "iptable_nat", "iptable_filter"), script=IPTABLES.format("iptables-legacy")),
    Ability(name="nft", core=True, needed_by="07, and kube-proxy's nftables mode", programs=("nft",),
            modules=("nf_tables", "nft_chain_nat"), script=NFT),
    Ability(name="nft trace", needed_by="the life of a packet", programs=("nft", "ping", "timeout"),
            modules=("nf_tables",), script=NFT_TRACE),
    Ability(name="ipset", needed_by="kube-proxy's IPVS mode", programs=("ipset", "iptables"),
            modules=("ip_set", "ip_set_hash_ip", "xt_set"), script=IPSET),
    Ability(name="vxlan", core=True, needed_by="07: pods of several nodes, as an overlay", programs=("ip",),
            modules=("vxlan",),
            script="ip link add name v type vxlan id 7 dstport 4789 nolearning"),
    Ability(name="macvlan", needed_by="interfaces that share a card", programs=("ip",), modules=("macvlan",),
            script=f"{VETH} ip link add link a name m type macvlan mode bridge"),
    Ability(name="CNI plugins", core=True, needed_by="06 and later: pods of a cluster", script=CNI,
            remedy="sudo apt-get install containernetworking-plugins"),
    Ability(name="openssl", needed_by="13: certificates of an Ingress", programs=("openssl",),
            script="openssl ecparam -name prime256v1 -genkey -noout"),
    Ability(name="dnsmasq", needed_by="12: names by hand", programs=("dnsmasq", "dig"), script=DNSMASQ),
    Ability(name="bird", core=True, needed_by="07: routes between nodes by BGP", programs=("bird", "birdc"),
            script=BIRD),
    Ability(name="IPVS", needed_by="kube-proxy's IPVS mode", modules=("ip_vs",), script=_python(IPVS)),
    Ability(name="bpf", needed_by="data planes in eBPF", script=_python(BPF),
            remedy="needs the machine's root, which a sandbox has not"),
    Ability(name="/dev/kvm", bare=True, needed_by="virtual machines at full speed", script=_python(KVM),
            modules=("kvm",),
            remedy="let this user open /dev/kvm (sudo adduser $USER kvm), or do without: emulation works, slower"),
    Ability(name="virtual machine", bare=True, needed_by="what this Linux lacks or forbids (kernelspec k8snet-vm)",
            programs=("qemu-system-x86_64",), script=f"{sys.executable} -m k8snet.cli vm status",
            remedy="k8snet vm prepare"),
)  # fmt: skip
PACKAGES = {
    "qemu-system-x86_64": "--no-install-recommends qemu-system-x86", "timeout": "coreutils",
}  # fmt: skip
VIRTUAL_MACHINE = ', or the kernelspec "k8snet-vm", which boots one: k8snet vm prepare'
NOT_TRIED = "not tried: there is no sandbox to try it in"
SANDBOX = Ability(name="user namespaces", core=True, needed_by="every chapter: the sandbox", script="")
SETTINGS = (  # a file below /proc/sys, what it says where user namespaces do not work, and what helps
    ("kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1",
     "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
)  # fmt: skip
IN_A_CONTAINER = (
    "in a container, let it make user namespaces and mount /proc "
    "(docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, with the machine they are about."""

    machine: Machine
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether all is there that the book cannot do without, be it in the virtual machine."""
        needed = [finding for finding in self.findings if finding.core]
        if self.only_in_vm:  # the same programs are there, and a Linux that has it all
            needed = [finding for finding in needed if finding.ability != SANDBOX.name and finding.remedy != NOT_TRIED]
        return all(finding.ok for finding in needed)

    @property
    def only_in_vm(self) -> bool:
        """Whether sandboxes are forbidden here, and the virtual machine is ready to stand in for them."""
        there = {finding.ability for finding in self.findings if finding.ok}
        return SANDBOX.name not in there and "virtual machine" in there

    def __getitem__(self, ability: str) -> Finding:
        """Return the finding about one ability."""
        return next(finding for finding in self.findings if finding.ability == ability)

    def as_dict(self) -> dict[str, object]:
        """Return all of it in types that JSON has."""
        return {"ok": self.ok, **asdict(self)}

    @property
    def verdict(self) -> str:
        """One sentence: what can be read here."""
        missing = [finding.ability for finding in self.findings if not finding.ok]
        if not missing:
            return "Every chapter can run here."
        if self.ok and self.only_in_vm:
            return "User namespaces are forbidden here: every chapter runs in the virtual machine (k8snet-vm), slower."
        if self.ok:
            return f"The book can run here, but for what needs {', '.join(missing)}; the table says what that is."
        needed = [finding.ability for finding in self.findings if finding.core and not finding.ok]
        return f"Not ready: the first chapters need {needed[0] if SANDBOX.name in needed else ', '.join(needed)}."

    def __str__(self) -> str:
        """Return a table for a terminal without colours."""
        width = max(len(finding.ability) for finding in self.findings)
        lines = [f"{name:{width}}  {value}" for name, value in _facts(self.machine)] + [""]
        lines += [
            f"{finding.ability:{width}}  {_mark(finding):3}  {finding.needed_by}{_advice(finding, '; ')}"
            for finding in self.findings
        ]
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{html.escape(finding.ability)}</td><td><b>{_mark(finding)}</b></td>'
            f'<td style="text-align:left">{html.escape(finding.needed_by)}</td>'
            f'<td style="text-align:left;white-space:pre-wrap">{html.escape(_advice(finding))}</td></tr>'
            for finding in self.findings
        )
        names = ("ability", "here", "what needs it", "remedy")
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{html.escape(self.verdict)}</p>"


def look() -> Report:
    """Try every ability in a sandbox: this one, if we are in one already."""
    findings = probe_all() if os.environ.get(sandbox.INSIDE) else _probe_in_sandbox()
    return Report(machine=_machine(), findings=tuple(_with_chapters(findings)))


def show(report: Report) -> None:
    """Show *report* on the terminal, in colour if it has any."""
    console = Console()
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report.machine):
        facts.add_row(Text(name, "bold"), Text(value))
    table = Table("ability", "here", "what needs it")
    table.add_column("remedy", overflow="fold")  # to copy it, all of it is needed
    for finding in report.findings:
        colour = "green" if finding.ok else "red" if finding.core else "yellow"
        table.add_row(finding.ability, Text(_mark(finding), colour), finding.needed_by, Text(_advice(finding)))
    console.print(facts, table, report.verdict, sep="\n")


def _with_chapters(findings: list[Finding]) -> list[Finding]:
    """Name the chapters that ask for an ability in their metadata."""
    try:
        asking = {chapter.name: chapter.requires for chapter in find_chapters()}
    except K8snetError:  # installed without the book
        asking = {}
    return [
        replace(finding, needed_by=", ".join([finding.needed_by, *names]))
        for finding in findings
        for names in [[name for name, wanted in asking.items() if finding.ability in wanted]]
    ]


def _mark(finding: Finding) -> str:
    return "yes" if finding.ok else "NO" if finding.core else "no"


def _advice(finding: Finding, before: str = "") -> str:
    if finding.ok:
        return ""
    parts = [part for part in (finding.remedy, f"(it said: {finding.reason})" if finding.reason else "") if part]
    return before + "\n".join(parts)


def _facts(machine: Machine) -> list[tuple[str, str]]:
    return [
        ("Linux", machine.linux),
        ("Python", machine.python),
        ("user", machine.user),
        ("memory", f"{machine.memory_free_mb:,} MB free of {machine.memory_mb:,} MB; a lab needs some 300 MB"),
        ("disk", f"{machine.disk_free_mb:,} MB free"),
        ("working copy", machine.working_copy),
        ("state", machine.state),
        ("runs on", machine.platform),
    ]


# -- trying ----------------------------------------------------------------------------


def _probe_in_sandbox() -> list[Finding]:
    inner = [sys.executable, "-m", "k8snet.doctor", "--probe"]
    argv = [sys.executable, "-m", "k8snet.cli", "sandbox", "--writable", tempfile.gettempdir(), "--", *inner]
    try:
        done = programs.run(argv, timeout_s=SANDBOX_S, check=False)
    except (Timeout, OSError) as error:
        return _without_sandbox(str(error))
    if done.code == 0:
        return [Finding(**finding) for finding in json.loads(done.stdout)]
    reason = next(iter(done.stderr.strip().splitlines()), f"exit code {done.code}").removeprefix("k8snet: ")
    reason = reason.removesuffix(f": {sandbox.FORBIDDEN.splitlines()[0]}")
    return _without_sandbox(reason)


def _without_sandbox(reason: str) -> list[Finding]:
    return [_not_ok(SANDBOX, reason), *(_probe(one) if one.bare else _not_tried(one) for one in ABILITIES)]


def probe_all() -> list[Finding]:
    """Try every ability from inside a sandbox."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        findings = list(pool.map(_probe, ABILITIES))
    return [_found(SANDBOX), *findings]


def _probe(ability: Ability) -> Finding:
    argv = [*(() if ability.bare else BEFORE_PROBE), "sh", "-c", PRELUDE + ability.script]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *programs.EXTRA_PATH])
    try:
        done = programs.run(argv, timeout_s=PROBE_S, check=False, env={**os.environ, "PATH": path})
    except (K8snetError, OSError) as error:
        return _not_ok(ability, f"no answer after {PROBE_S:g} s" if isinstance(error, Timeout) else str(error))
    if done.ok:
        return _found(ability)
    return _not_ok(ability, next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.code}"))


def _found(ability: Ability) -> Finding:
    return Finding(ability=ability.name, ok=True, core=ability.core, needed_by=ability.needed_by)


def _not_ok(ability: Ability, reason: str) -> Finding:
    return Finding(
        ability=ability.name, ok=False, core=ability.core, needed_by=ability.needed_by,
        reason="" if _missing(ability) else reason, remedy=remedy(ability),
    )  # fmt: skip


def _not_tried(ability: Ability) -> Finding:
    return Finding(
        ability=ability.name, ok=False, core=ability.core, needed_by=ability.needed_by,
        remedy=remedy(ability) if _missing(ability) else NOT_TRIED,
    )  # fmt: skip


def remedy(ability: Ability) -> str:
    """Return what to do: install a package, load a module, or what the ability itself says."""
    if ability == SANDBOX:
        return _user_namespaces()
    if missing := _missing(ability):
        packages = {PACKAGES.get(name) or programs.PACKAGES.get(name, name) for name in missing}
        return f"sudo apt-get install {' '.join(sorted(packages))}"
    if loadable := [name for name in ability.modules if _is_loadable(name)]:
        return f"sudo modprobe {' '.join(loadable)}"
    if ability.remedy:
        return ability.remedy
    return f"a Linux that has it{VIRTUAL_MACHINE}" if ability.modules else "see what it said"


def _user_namespaces() -> str:
    """Return the commands that change the settings which forbid them; else it is a container's doing."""
    commands = []
    for name, forbids, command in SETTINGS:
        with contextlib.suppress(OSError):  # not every Linux has every setting
            if Path("/proc/sys", name).read_text().strip() == forbids:
                commands.append(command)
    return "\n".join([*(commands or [IN_A_CONTAINER]), "or do without: k8snet vm prepare, and chapters run in that"])


def _missing(ability: Ability) -> list[str]:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *programs.EXTRA_PATH])
    return [name for name in ability.programs if not shutil.which(name, path=search)]


def _is_loadable(module: str) -> bool:
    """Tell whether *module* is a file that modprobe would find, and not loaded yet."""
    try:
        known = (MODULES / "modules.dep").read_text()
    except OSError:
        return False
    return f"/{module}.ko" in known and not (LOADED / module).exists()


def _user() -> str:
    if os.environ.get(sandbox.INSIDE):
        return "in a sandbox"
    return "root; a sandbox runs as nobody" if os.geteuid() == 0 else f"an ordinary one (id {os.geteuid()})"


def _machine() -> Machine:
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    folder = workdir.default_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Machine(
        linux=f"{platform.release()} ({platform.machine()})",
        python=f"{platform.python_version()} ({sys.executable})",
        user=_user(),
        memory_mb=int(memory["MemTotal"].split()[0]) // 1024,
        memory_free_mb=int(memory["MemAvailable"].split()[0]) // 1024,
        disk_free_mb=shutil.disk_usage(existing).free // 2**20,
        working_copy=str(folder), state=str(sandbox.state_folder()),
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] != ["--probe"]:
        sys.exit("python -m k8snet.doctor is what `k8snet doctor` runs inside a sandbox")
    sys.stdout.write(json.dumps([asdict(finding) for finding in probe_all()]))
