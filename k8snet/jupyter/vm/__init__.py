"""The kernelspec `k8snet-vm`: ipykernel, or any command, in a small virtual machine without root.

    launch.py    what Jupyter starts: listens on the ports of the connection file
    └── machine.py   QEMU, killed with its launcher; its only link outside is one byte stream
        └── guest.py     process 1 of the guest: the other end of that stream, and the command
    image.py     the kernel, the modules and the initramfs, prepared once by `k8snet vm prepare`
    need.py      which chapters need it here

The guest's root is this machine's own, read-only below a tmpfs: the same Python, the
same programs, no image to build. The working copy and the state folder are writable.
"""
