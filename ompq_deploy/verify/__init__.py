"""Check what was written: files against the lock, and the executions of one network against each other."""

from ompq_deploy.verify.compare import verify
from ompq_deploy.verify.verdict import verdict_document

__all__ = ["verdict_document", "verify"]
