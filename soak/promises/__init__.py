"""What was promised, and how each promise is checked: functions that yield a sentence for every breach."""
