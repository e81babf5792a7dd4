# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the packet that opens a connection to the daemon, in C: build_hello.py ROOT OUTPUT.

So C can send it while Python still starts. Runs when kvmchan is built.
"""

import sys


def main(root: str, output: str) -> None:
    """Encode it as our Python code in `root` does."""
    sys.path.insert(0, root)
    from kvmchand.wire import client

    packet = client.requests.encode(client.Hello(client.VERSION))
    with open(output, "w", encoding="ascii") as file:  # noqa: PTH123 # pathlib would be imported
        file.write("/* SPDX-License-Identifier: LGPL-2.1-or-later */\n")
        file.write('#include "setup/hello.h"\n')
        file.write(f"const unsigned char hello_packet[] = {{{','.join(map(str, packet))}}};\n")
        file.write(f"const size_t hello_size = {len(packet)};\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
