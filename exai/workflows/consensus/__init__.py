"""Consensus: ask several models the same question without showing them each other's answers, and let another decide."""

from exai.workflows.consensus.requests import ConsensusRequest, ConsensusResult, PanelAnswer
from exai.workflows.consensus.service import ConsensusService

__all__ = ["ConsensusRequest", "ConsensusResult", "ConsensusService", "PanelAnswer"]
