"""What the kernel says and must do; nothing here knows what a pod or a policy is."""
