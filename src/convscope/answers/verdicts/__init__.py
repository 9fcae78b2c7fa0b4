"""What measured figures say: verdicts, sentences, tables and pictures, one file a question. Nothing is measured here."""
