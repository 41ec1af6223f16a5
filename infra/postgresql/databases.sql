-- Beside `mlflow`, which PostgreSQL's image makes itself.
create database auth;
create database prefect;
