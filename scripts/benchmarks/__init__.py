"""The benches of `scripts/bench`. No part of the product; nothing imports them."""
