"""Which map of a layer, or which rival of one, says best what interventions do."""
