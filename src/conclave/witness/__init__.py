"""An outside witness: countersigns states of logs, so that no log has two continuations.

Run by another party than the operators whose enclaves it witnesses: it holds a key of its
own, and everybody who asks it is untrusted. It sees log ids, versions and times, and no
contents.

Spec: spec/witness.md.
"""
