"""Which card is it, who holds it, and what can it do."""
