"""The secure sum of Section 4 without I/O: no socket, no clock, no thread, and randomness only as an argument.

Read in this order: `coin` (which all parties throw together), `order` (who stands next to whom), `residues` (numbers
mod N), `message` (what goes over the wire), `protocol` (one secure sum as a state machine), `keystream` and `chunks`
(the same sum of a long vector), `views` (what each role sees, and simulators of it), `disclosure` (the same in
sentences, before anything leaves a hospital) and `sheet` (the same with every message, for those who decide whether it
may).
"""
