"""What people look at of a training or an evaluation: charts, galleries, pages."""
