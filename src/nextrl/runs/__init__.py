"""From a config to a result: one resumable run, arms compared, the page that shows them."""
