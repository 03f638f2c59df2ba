"""Processes below one of ours, which may end while a test looks at them."""

import psutil


def titled(root: int | None = None) -> list[tuple[psutil.Process, str]]:
    """Each process below `root`, or below this one, with its command line; those that have just ended are left out."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            found.append((process, " ".join(process.cmdline())))
        except psutil.NoSuchProcess:
            continue
    return found


def family(root: int, *titles: str) -> list[psutil.Process]:
    """Processes below `root` whose command line holds one of these."""
    return [process for process, title in titled(root) if any(part in title for part in titles)]


def cpu_s(processes: list[psutil.Process]) -> dict[int, float]:
    """CPU seconds that each has spent outside the kernel, by process id, of those that still run."""
    spent = {}
    for process in processes:
        try:
            spent[process.pid] = process.cpu_times().user
        except psutil.NoSuchProcess:
            continue
    return spent


def listening(root: int) -> list[tuple[str, str]]:
    """Command line and address of each TCP socket that `root` or a process below it listens on."""
    found = []
    for process, title in [(psutil.Process(root), f"process {root}"), *titled(root)]:
        try:
            sockets = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        found += [(title, socket.laddr.ip) for socket in sockets if socket.status == psutil.CONN_LISTEN]
    return found
