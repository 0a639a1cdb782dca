"""One secure sum by a peer, checked and timed: PYTHON bench/ring_peers.py PEER PARTIES SLOTS (bench/ring.py runs it).

Prints a line of JSON: processor seconds of all parties together, and whether the sum was right. A party of MPyC is a
process of its own and shares its vector among all, over TCP; TenSEAL's parties encrypt under one BFV key, somebody adds
and the key's owner decrypts; Flower's primitives are called as its SecAgg+ clients and server call them, with every
client the neighbour of every other, and nothing lost on the way. The last two are in one process with no network.
"""

import argparse
import json
import socket
import subprocess
import sys
import time

import numpy as np

BOUND = 2**40


def values_of(i, slots):
    return np.random.default_rng(i).integers(0, BOUND, slots)


def expected(parties, slots):
    return sum(values_of(i, slots) for i in range(parties))


# MPyC.


def mpyc(parties, slots):
    """Start the parties, on ports that are free now, and add up what they took."""
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(parties)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    where = [part for port in ports for part in ("-P", f"127.0.0.1:{port}")]
    command = [sys.executable, __file__, "mpyc-party", str(parties), str(slots), *where, "--no-log"]
    running = [subprocess.Popen([*command, "-I", str(i)], stdout=subprocess.PIPE) for i in range(parties)]
    told = [json.loads(one.communicate()[0].splitlines()[-1]) for one in running]
    return {"cpu": sum(one["cpu"] for one in told), "right": told[0]["right"]}


def mpyc_party(parties, slots):
    from mpyc.runtime import mpc

    field = mpc.SecFld(2**61 - 1)

    async def work():
        await mpc.start()
        mine = values_of(mpc.pid, slots)
        start = time.process_time()
        shared = mpc.input(field.array(field.field.array(mine.astype(object))))
        total = await mpc.output(sum(shared[1:], shared[0]), receivers=[0])
        taken = time.process_time() - start
        right = mpc.pid != 0 or [int(one) for one in total] == expected(parties, slots).tolist()
        await mpc.shutdown()
        return {"cpu": taken, "right": right}

    return mpc.run(work())


# TenSEAL.


def tenseal(parties, slots):
    import tenseal as ts
    from gmpy2 import is_prime

    degree = 8192
    modulus = next(p for p in range(2**45 + 1, 2**46, 2 * degree) if is_prime(p))
    context = ts.context(ts.SCHEME_TYPE.BFV, degree, modulus)
    vectors = [values_of(i, slots) for i in range(parties)]
    start = time.process_time()
    sums = None
    for vector in vectors:
        pieces = [vector[at : at + degree].tolist() for at in range(0, slots, degree)]
        sent = [ts.bfv_vector(context, piece).serialize() for piece in pieces]
        came = [ts.bfv_vector_from(context, one) for one in sent]
        sums = came if sums is None else [mine + theirs for mine, theirs in zip(sums, came, strict=True)]
    total = [one for piece in sums for one in piece.decrypt()]
    taken = time.process_time() - start
    return {"cpu": taken, "right": total == expected(parties, slots).tolist()}


# Flower.


def flower(parties, slots):
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import (
        bytes_to_public_key,
        generate_key_pairs,
        private_key_to_bytes,
        public_key_to_bytes,
    )

    modulus, threshold = 2**44, parties // 2 + 1
    vectors = [values_of(i, slots) for i in range(parties)]
    start = time.process_time()
    keys = [generate_key_pairs() for _ in range(parties)]
    public = [public_key_to_bytes(one) for _, one in keys]
    seeds = [np.random.default_rng().bytes(32) for _ in range(parties)]
    shares = [create_shares(seed, threshold, parties) for seed in seeds]
    for private, _ in keys:
        create_shares(private_key_to_bytes(private), threshold, parties)
    masked = []
    for i, vector in enumerate(vectors):
        private = keys[i][0]
        mine = parameters_addition([vector], pseudo_rand_gen(seeds[i], modulus, [vector.shape]))
        for j in range(parties):
            if j != i:
                shared = generate_shared_key(private, bytes_to_public_key(public[j]))
                mask = pseudo_rand_gen(shared, modulus, [vector.shape])
                mine = (parameters_addition if i > j else parameters_subtraction)(mine, mask)
        masked.append(parameters_mod(mine, modulus))
    total = masked[0]
    for one in masked[1:]:
        total = parameters_addition(total, one)
    for own in shares:
        seed = combine_shares(own[:threshold])
        total = parameters_subtraction(total, pseudo_rand_gen(seed, modulus, [vectors[0].shape]))
    total = parameters_mod(total, modulus)
    taken = time.process_time() - start
    return {"cpu": taken, "right": bool((total[0] == expected(parties, slots)).all())}


PEERS = {"mpyc": mpyc, "mpyc-party": mpyc_party, "tenseal": tenseal, "flower": flower}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("parties", type=int)
    parser.add_argument("slots", type=int)
    options, _ = parser.parse_known_args()  # what is left is MPyC's own
    print(json.dumps(PEERS[options.peer](options.parties, options.slots)))


if __name__ == "__main__":
    main()
