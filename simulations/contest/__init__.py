"""The field's methods side by side: what they are given, how their settings are searched, and how they are judged."""
