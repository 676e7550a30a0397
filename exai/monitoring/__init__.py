"""What this process did and how it is: metrics, health, and the HTTP routes that show them."""
