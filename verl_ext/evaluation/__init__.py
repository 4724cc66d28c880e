"""How good a student is: answers against the right ones, and against the teacher's."""
