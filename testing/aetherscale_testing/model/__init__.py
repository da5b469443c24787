"""A model of the protocol, explored exhaustively: the product's own decisions in a small world where all can fail.

state       what the world is made of: one VM id, a few hosts, a broker, a client
decisions   the product's decisions, and each rule taken out
moves       what can happen next
verdicts    what must never be
explore     every world that can be reached, and the shortest way to a bad one
"""
